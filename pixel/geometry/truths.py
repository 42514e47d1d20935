"""True distributions of points (N, D): where the points lie, and how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Truth(Protocol):
    origin: Tensor  # the centre, (D,)
    dimension: int
    codimension: int  # directions in which a point can leave the truth

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """=>  clean points (count, D)."""

    def project(self, points: Tensor) -> Tensor:
        """=>  the nearest noise-free point (on the plane, or a centre of the mixture), (N, D)."""

    def views(self) -> dict[str, Tensor]:
        """=>  name of a view -> the two orthonormal directions that a figure shows, (2, D)."""


@dataclass(frozen=True)
class Subspace:
    """Points origin + coordinates @ basis, in a flat subspace.

    origin: (D,); basis: (K, D), orthonormal rows;
    draw_coordinates: (count, generator)  =>  (count, K).
    """

    origin: Tensor
    basis: Tensor
    draw_coordinates: Callable[[int, torch.Generator], Tensor]

    @property
    def dimension(self) -> int:
        return self.basis.shape[1]

    @property
    def codimension(self) -> int:
        return self.basis.shape[1] - self.basis.shape[0]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.origin + self.draw_coordinates(count, generator) @ self.basis

    def project(self, points: Tensor) -> Tensor:
        return self.origin + (points - self.origin) @ self.basis.T @ self.basis

    def views(self) -> dict[str, Tensor]:
        normal = torch.linalg.svd(self.basis).Vh[-1]
        return {"edge-on": torch.stack([self.basis[0], normal]), "face-on": self.basis[:2]}


@dataclass(frozen=True)
class Mixture:
    """K isotropic Gaussians with equal weights. centres: (K, 2); std: of each, per direction."""

    centres: Tensor
    std: float
    dimension: int = 2
    codimension: int = 2  # a point is projected to a centre, so every direction leads away

    @property
    def origin(self) -> Tensor:
        return self.centres.mean(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(len(self.centres), (count,), generator=generator)
        offset = self.std * torch.randn(count, 2, generator=generator)
        return self.centres[component] + offset

    def project(self, points: Tensor) -> Tensor:
        return self.centres[torch.cdist(points, self.centres).argmin(1)]

    def views(self) -> dict[str, Tensor]:
        return {"": torch.eye(2)}


def oblique_plane() -> Subspace:
    """Uniform on a square of side 2 in three dimensions, with normal (1, 2, 3) / sqrt(14).

    No axis lies in the plane, and its normal is no diagonal of the cube, so sign(gradient) cannot
    point exactly along it."""
    normal = torch.tensor([1.0, 2.0, 3.0]) / math.sqrt(14)
    first = torch.tensor([2.0, -1.0, 0.0]) / math.sqrt(5)
    basis = torch.stack([first, torch.linalg.cross(normal, first)])
    return Subspace(torch.zeros(3), basis, lambda n, g: 2 * torch.rand(n, 2, generator=g) - 1)


def ring_of_gaussians(components: int = 5, std: float = 0.1) -> Mixture:
    """Gaussians on the unit circle; with five, neighbours are 1.18 apart."""
    angles = 2 * math.pi * torch.arange(components) / components + math.pi / 2
    return Mixture(torch.stack([angles.cos(), angles.sin()], 1), std)


def digit_subspace(components: int = 8) -> Subspace:
    """scikit-learn's 1,797 digits (8 x 8, in [-1, 1], D = 64), projected onto their first principal
    components. Drawing uses every image equally often, up to one time."""
    from latent_robust.data.sources.builtin import digits

    images = 2 * digits().images.flatten(1) - 1
    origin = images.mean(0)
    basis = torch.linalg.svd((images - origin).double(), full_matrices=False).Vh[:components]
    basis = basis.float()
    coordinates = (images - origin) @ basis.T

    def draw(count: int, generator: torch.Generator) -> Tensor:
        rounds = -(-count // len(coordinates))
        order = [torch.randperm(len(coordinates), generator=generator) for _ in range(rounds)]
        return coordinates[torch.cat(order)[:count]]

    return Subspace(origin, basis, draw)
