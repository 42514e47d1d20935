"""Aspect-ratio buckets: sizes of about equal area, one for each shape of image.

A batch holds images of one bucket, so that little of a wide or tall image must be cropped.
The sizes follow the rule of kohya's sd-scripts and of SDXL (Podell et al. 2023, appendix I).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.errors import InputError

# Neighbouring buckets differ by this part of the resolution: 64 pixels at 1024, as SDXL has it.
STEPS = 16


def make_buckets(
    resolution: int, multiple: int = 8, max_ratio: float = 2.0
) -> list[tuple[int, int]]:
    """=>  (height, width), from tall to wide, none larger in area than resolution**2.

    multiple: of which all sides are multiples, in pixels; max_ratio: >= 1, longer to shorter side.
    """
    if multiple < 1 or resolution < multiple or resolution % multiple:
        nearest = max(1, round(resolution / max(1, multiple))) * multiple
        raise InputError(
            f"`resolution` must be a multiple of {multiple} for this model, got {resolution}; "
            f"the nearest is {nearest}"
        )
    if max_ratio < 1:
        raise InputError(f"`max_ratio` must be >= 1, got {max_ratio}; 1 gives squares only")
    step = max(1, round(resolution / STEPS / multiple)) * multiple
    wide = []
    for height in range(resolution, 0, -step):
        width = resolution**2 // height // multiple * multiple
        if width > max_ratio * height:
            break
        wide.append((height, width))
    tall = [(width, height) for height, width in wide if width != height]
    return tall[::-1] + wide


def assign_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """size: (height, width).  =>  the bucket of the nearest aspect ratio, by its logarithm."""
    return min(buckets, key=lambda bucket: abs(_log_ratio(bucket) - _log_ratio(size)))


def fit_bucket(image: Tensor, bucket: tuple[int, int]) -> Tensor:
    """(C, H, W)  =>  (C, h, w): the largest central part of the bucket's shape, antialiased.

    Cropped first, so that a strip of 1 x 10,000,000 pixels cannot grow when its shorter side does.
    """
    part = _part(tuple(image.shape[-2:]), bucket)
    image = v2.center_crop(image, list(part))
    return image if part == bucket else v2.resize(image, list(bucket), antialias=True)


def framing(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, ...]:
    """What `fit_bucket` does to an image, in pixels, as SDXL is told it: original height and
    width; top and left of the crop, in the resized image; height and width of the bucket."""
    cut = [
        round((whole - part) / 2 * side / part)
        for whole, part, side in zip(size, _part(size, bucket), bucket, strict=True)
    ]
    return (*size, *cut, *bucket)


def _part(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """=>  the largest height and width of the bucket's shape within an image."""
    (full_height, full_width), (height, width) = size, bucket
    # Integers, so that an image of exactly the bucket's shape loses no row to rounding.
    part_height = min(full_height, max(1, round(full_width * height / width)))
    part_width = min(full_width, max(1, round(full_height * width / height)))
    return part_height, part_width


def _log_ratio(size: tuple[int, int]) -> float:
    height, width = size
    return log(height / width)
