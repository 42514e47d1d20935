"""The four toys: a true distribution, the size of the training set, and its contamination."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_robust.core import derive_generator
from latent_robust.errors import InputError, did_you_mean

from .truths import (
    Truth,
    digit_subspace,
    oblique_plane,
    ring_of_gaussians,
)


@dataclass(frozen=True)
class Dirt:
    """outliers: share of the points replaced by points uniform in [-half_side, half_side]^D. noisy:
    share of the other points that get Gaussian noise of `std` in every direction."""

    noisy: float = 0.0
    std: float = 0.0
    outliers: float = 0.0
    half_side: float = 2.0

    def __call__(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """points: (N, D)  =>  (N, D). The shares are exact, rounded to the nearest point."""
        count, dirty = len(points), points.clone()
        order = torch.randperm(count, generator=generator)
        outliers = round(self.outliers * count)
        out, rest = order[:outliers], order[outliers:]
        cube = torch.rand(outliers, points.shape[1], generator=generator)
        dirty[out] = self.half_side * (2 * cube - 1)
        noisy = rest[: round(self.noisy * len(rest))]
        dirty[noisy] += self.std * torch.randn(len(noisy), points.shape[1], generator=generator)
        return dirty


@dataclass(frozen=True)
class Toy:
    """points: size of the training set. far: value of `off_truth` above which a generated point
    counts as an outlier; three standard deviations of the noise."""

    truth: Truth
    points: int
    dirt: Dirt
    far: float

    def training_set(self, seed: int, clean: bool = False) -> Tensor:
        """=>  (points, D). clean: the same points without the contamination."""
        points = self.truth.draw(self.points, derive_generator(seed, "points"))
        return points if clean else self.dirt(points, derive_generator(seed, "dirt"))

    def fresh(self, count: int, seed: int) -> Tensor:
        """=>  clean points (count, D), independent of the training set. For `pca`, whose truth is a
        finite set of images, they are the same images."""
        return self.truth.draw(count, derive_generator(seed, "fresh points"))


TOYS = ("plane", "plane-outliers", "mixture", "pca")


def make_toy(name: str) -> Toy:
    """name: one of TOYS. Raises InputError otherwise."""
    match name:
        case "plane":
            return Toy(oblique_plane(), 10_000, Dirt(noisy=0.9, std=0.2), far=0.6)
        case "plane-outliers":
            return Toy(oblique_plane(), 10_000, Dirt(outliers=0.2), far=0.6)
        case "mixture":
            dirt = Dirt(noisy=0.9, std=0.2, outliers=0.1)
            return Toy(ring_of_gaussians(), 10_000, dirt, far=0.6)
        case "pca":  # noise of 0.2 of the range of the images; each image is used once
            return Toy(digit_subspace(), 1797, Dirt(noisy=0.9, std=0.4), far=1.2)
    raise InputError(
        f"unknown toy {name!r}{did_you_mean(name, TOYS)}; the toys are {', '.join(TOYS)}"
    )
