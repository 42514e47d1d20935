"""Noise is measured where it lives: at the images' own resolution.

A reduction takes a part of the white noise away, and with it the high frequencies in which the
spectrum would show it. What is left is known: the reduction of white noise of the same level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.core import derive_generator

from .spectrum import (
    CLEAN,
    images_to_measure,
    noise_variance,
    patch_covariance,
    patch_side,
)

ORIGINALS = 256  # images that are measured at their own resolution
MIDDLE = 128  # pixels a side: the part of each that is measured
MAX_PIXELS = 2**27  # of white noise that is reduced
LEAST = 16  # images' worth of it


class ReducedImages(Protocol):
    """Images as a model is trained on them, e.g. ContaminatedImages."""

    def __len__(self) -> int: ...

    def sample_tensor(self, limit: int | None = None) -> Tensor:
        """`limit` evenly spaced samples (None: all), (N, C, H, W) in [-1, 1]."""
        ...

    def originals(self, limit: int) -> Iterator[Tensor]:
        """Some of the images, (C, H, W) in [-1, 1], at their own resolution."""
        ...

    def fit(self, image: Tensor) -> Tensor:
        """Crop and resize an image (C, H, W) as for training."""
        ...


def to_measure(images: ReducedImages) -> tuple[Tensor, Tensor | None]:
    """=>  samples and what noise a reduction left in them, as `measure_spectrum` takes both."""
    _, channels, size, _ = images.sample_tensor(limit=1).shape
    samples = images.sample_tensor(limit=images_to_measure(size, channels))
    return samples, reduced_noise(images.originals(ORIGINALS), images.fit)


def reduced_noise(originals: Iterable[Tensor], fit: Callable[[Tensor], Tensor]) -> Tensor | None:
    """=>  white noise of the images' level as the reduction leaves it, (N, C, h, w), in units of
    [-1, 1]; None if no image is resized, or if they show no noise.

    originals: images (C, H, W) in [-1, 1] at their own resolution. fit: crops and resizes an image
    (C, H, W) as training does.
    """
    sizes: list[tuple[int, int]] = []
    middles: list[Tensor] = []
    resized = False
    for image in originals:
        height, width = image.shape[-2:]
        resized = resized or fit(image).shape != image.shape
        sizes.append((height, width))
        middles.append(v2.center_crop(image, [min(height, MIDDLE), min(width, MIDDLE)])[None])
    if not resized:
        return None
    channels = middles[0].shape[1]
    if all(torch.equal(m[:, :1].expand_as(m), m) for m in middles):
        middles = [m[:, :1] for m in middles]  # gray: equal noise in all channels is not white
    smallest = min(min(m.shape[-2:]) for m in middles)
    side = patch_side((len(middles), middles[0].shape[1], smallest, smallest))
    variances = torch.linalg.eigvalsh(patch_covariance(middles, side)).flip(0).clamp_min(0)
    level = sqrt(noise_variance(variances))
    if level < CLEAN:
        return None
    reduced, pixels = [], 0
    for number, size in enumerate(sizes):
        pixels += size[0] * size[1]
        if pixels > MAX_PIXELS and number >= LEAST:
            break
        generator = derive_generator(0, "reduced", number)
        white = torch.randn(middles[0].shape[1], *size, generator=generator)
        reduced.append(level * fit(white).expand(channels, -1, -1))
    return torch.stack(reduced)
