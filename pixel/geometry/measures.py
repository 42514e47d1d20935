"""Distances of a set of points from the true distribution of a toy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent_robust.core import derive_generator
from latent_robust.evaluation.metrics import frechet_distance

from .toys import Toy
from .truths import Truth


def off_truth(points: Tensor, truth: Truth) -> Tensor:
    """Distance of each point to the truth, divided by sqrt(codimension).

    points: (N, D)  =>  (N,). Gaussian noise of std s around the truth gives root mean square s."""
    return (points - truth.project(points)).norm(dim=1) / math.sqrt(truth.codimension)


def variance_kept(points: Tensor, reference: Tensor, truth: Truth) -> float:
    """Variance of the points projected onto the truth, divided by that of the reference.

    1 is correct; less means that the points collapse, more that they spread out."""
    kept, true = (truth.project(p).var(0).sum() for p in (points, reference))
    return (kept / true).item()


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int = 0, directions: int = 200) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance between the
    one-dimensional projections (Bonneel et al. 2015).

    a, b: (N, D), of equal size, so that sorting gives the optimal transport."""
    where = torch.randn(a.shape[1], directions, generator=derive_generator(seed, "directions"))
    where = where / where.norm(dim=0)
    projections = [(points @ where).sort(0).values for points in (a, b)]
    return (projections[0] - projections[1]).square().mean().sqrt().item()


def psnr(restored: Tensor, original: Tensor, peak: float = 2.0) -> float:
    """Peak signal-to-noise ratio, 10 log10(peak^2 / mean squared error), in dB.

    peak: range of the data; 2 for [-1, 1]."""
    error = (restored - original).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def measure_points(points: Tensor, toy: Toy, seed: int) -> dict[str, float]:
    """All measures of points (N, D) against N fresh points of the truth."""
    reference = toy.fresh(len(points), seed)
    off = off_truth(points, toy.truth)
    return {
        "frechet": frechet_distance(points, reference),
        "sliced_wasserstein": sliced_wasserstein(points, reference),
        "off_truth": off.square().mean().sqrt().item(),
        "variance_kept": variance_kept(points, reference, toy.truth),
        "far": (off > toy.far).double().mean().item(),
    }
