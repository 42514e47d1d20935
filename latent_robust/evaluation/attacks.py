"""Attacks on the sampling trajectory: at chosen times the noise is perturbed to mislead the model.

At an attacked step x becomes x + sigma(t) * w with |w| <= radius elementwise, in noise units as in
core/perturbation.py: radius 1 changes each pixel by at most one standard deviation of its noise.
The attack is white-box and untargeted. w displaces the clean estimate as far as possible:

    maximise over w   E || estimate(x + sigma w) - estimate(x) ||^2

`estimate` follows the sampler through `depth` networks, so the gradient includes what the next
steps would repair (an adaptive attack). E is the mean over `draws` of the ancestral noise of these
steps (expectation over transformation, Athalye et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_robust.core import (
    NoiseProcess,
    adversarial_perturbation,
    derive_generator,
    random_perturbation,
)

from .sampling import advance, predict, unclipped_estimate


@dataclass(frozen=True)
class TrajectoryAttack:
    """A `perturb` of `generate_samples`, for the same network and scheduler.

    radius: >= 0, in noise units. at: times in the scheduler's unit; each selects the nearest
    sampling step. iterations: 1 is FGSM, more is PGD, both from a random start; 0 takes +-radius at
    random, which has the size of an attack without its direction. depth: networks that the gradient
    goes through, >= 1. draws: >= 1; more than one only matters to an ancestral sampler with
    depth > 1.

    The attack does not know the sampler's own noise and uses none of its random numbers. It is
    deterministic for a given batch size.
    """

    network: nn.Module
    scheduler: object
    radius: float
    at: Sequence[float]
    iterations: int = 1
    depth: int = 1
    draws: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.radius < 0 or self.iterations < 0 or self.depth < 1 or self.draws < 1:
            raise ValueError(
                "need radius >= 0, iterations >= 0, depth >= 1 and draws >= 1, got "
                f"{self.radius}, {self.iterations}, {self.depth} and {self.draws}"
            )

    def __call__(self, x: Tensor, step: int, images: range) -> Tensor:
        if step not in nearest_steps(self.scheduler.timesteps, self.at):
            return x
        t = self.scheduler.timesteps[step]
        _, sigma = NoiseProcess.from_scheduler(self.scheduler)(t.expand(len(x)), x)
        radius = torch.full_like(sigma, self.radius)
        start = derive_generator(self.seed, "attack", step, images.start, device=x.device)
        if self.iterations == 0:
            return x + sigma * radius * random_perturbation(x, radius, start).sign()

        def estimates(x: Tensor) -> Tensor:  # (draws, B, ...); the same noise in every call
            return torch.stack([self._follow(x, step, images, n) for n in range(self.draws)])

        still = estimates(x)
        w = adversarial_perturbation(
            lambda w: estimates(x + sigma * w) - still,
            x,
            radius,
            start,
            self.iterations,
        )
        return x + sigma * w

    def _follow(self, x: Tensor, step: int, images: range, draw: int) -> Tensor:
        """The clean estimate (B, ...) after `depth` networks from this step on, or at the end. Not
        clipped: a clipped value has no gradient."""
        generators = [derive_generator(self.seed, "attack", step, draw, i) for i in images]
        scheduler = copy.copy(self.scheduler)  # Euler's scheduler counts its steps
        *before, last = scheduler.timesteps[step : step + self.depth]
        for t in before:
            x = advance(scheduler, predict(self.network, scheduler, x, t), t, x, generators)
        return unclipped_estimate(scheduler, predict(self.network, scheduler, x, last), last, x)


def nearest_steps(timesteps: Tensor, times: Sequence[float]) -> set[int]:
    """Indices of those of `timesteps` (S,) that are nearest to each of `times`."""
    return {(timesteps - time).abs().argmin().item() for time in times}
