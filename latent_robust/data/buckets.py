"""Aspect-ratio buckets: image sizes of about equal area, one for each aspect ratio.

A batch holds images of one bucket, so wide and tall images need little cropping. The sizes follow
the rule of kohya's sd-scripts and of SDXL (Podell et al. 2023, appendix I).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.errors import InputError

# Neighbouring buckets differ by resolution / STEPS pixels: 64 pixels at 1024, as in SDXL.
STEPS = 16


def make_buckets(
    resolution: int, multiple: int = 8, max_ratio: float = 2.0
) -> list[tuple[int, int]]:
    """Bucket sizes (height, width) in pixels, from tall to wide, of area <= resolution**2 each.

    multiple: every side is a multiple of it, in pixels; max_ratio: longer side over shorter side,
    >= 1. Raises InputError for a `resolution` that is no multiple, and for `max_ratio` < 1.
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
    """The bucket whose log aspect ratio is nearest to the image's. size: (height, width)."""
    return min(buckets, key=lambda bucket: abs(_log_ratio(bucket) - _log_ratio(size)))


def fit_bucket(image: Tensor, bucket: tuple[int, int]) -> Tensor:
    """Crop the center to the bucket's aspect ratio, then resize. (C, H, W)  =>  (C, h, w).

    The crop comes first. Resizing first would blow up a strip of 1 x 10,000,000 pixels, because its
    shorter side would have to grow to the bucket's. The resize is antialiased.
    """
    part = _part(tuple(image.shape[-2:]), bucket)
    image = v2.center_crop(image, list(part))
    return image if part == bucket else v2.resize(image, list(bucket), antialias=True)


def framing(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, ...]:
    """SDXL's size and crop conditions for an image that `fit_bucket` changes, in pixels.

    size: (height, width) of the image. Returns six values: height and width of the original; top
    and left of the crop, in the resized image; height and width of the bucket.
    """
    cut = [
        round((full - part) / 2 * side / part)
        for full, part, side in zip(size, _part(size, bucket), bucket, strict=True)
    ]
    return (*size, *cut, *bucket)


def _part(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) with the bucket's aspect ratio that fits into the image."""
    (full_height, full_width), (height, width) = size, bucket
    # Integer products: an image with exactly the bucket's aspect ratio loses no row to rounding.
    part_height = min(full_height, max(1, round(full_width * height / width)))
    part_width = min(full_width, max(1, round(full_height * width / height)))
    return part_height, part_width


def _log_ratio(size: tuple[int, int]) -> float:
    height, width = size
    return log(height / width)
