"""The loss of a batch: denoising, plus the penalty of objective.py on a share of the samples.

    L_AT = mean(denoising) + mean(penalty)

This module decides how that is computed: which rows the penalty looks at (rows.py), in how many
passes through the network, with which dropout masks (dropout.py), and which network an attack may
query under DistributedDataParallel. What is minimised stands in objective.py and peers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .dropout import shared_dropout
from .objective import EquivariancePenalty
from .process import NoiseProcess
from .registry import check_share
from .rows import choose_rows, rows_at_step

# denoise(noisy, t, rows) => prediction; rows (k,) says which rows of the batch these are, so that
# the caller can take the same rows of its conditions.
BatchDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Loss:
    """denoising: (B,). penalty: (k,), of some rows of the batch, weight included; empty if there
    is none."""

    denoising: Tensor
    penalty: Tensor

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        return self.denoising.mean() + (self.penalty.mean() if self.penalty.numel() else 0.0)


class Objective:
    """Plain denoising (Ho et al. 2020), plus a penalty on a share of each batch.

    penalty: None, or a weight of 0, is plain training.
    penalty_fraction: share of the samples, in (0, 1], that the penalty looks at.
    penalty_every: apply the penalty at every N-th call, to N times as many samples.

    The penalty of a share is an unbiased estimate of that of all samples, at a fraction of the
    cost. Dropout masks cannot be shared between different rows: a network with dropout needs
    penalty_fraction 1. Raises ValueError for a share that does not fit into a batch.
    """

    def __init__(
        self,
        process: NoiseProcess,
        penalty: EquivariancePenalty | None = None,
        penalty_fraction: float = 1.0,
        penalty_every: int = 1,
    ):
        check_share(penalty_fraction, penalty_every)
        self.process = process
        self.penalty = penalty if penalty is None or penalty.weighting.weight > 0 else None
        self.penalty_fraction = penalty_fraction
        self.penalty_every = penalty_every

    def __call__(
        self,
        denoise: BatchDenoiser,
        sample: Tensor,
        t: Tensor,
        noise: Tensor,
        generator: torch.Generator | None = None,
        *,
        levels: Tensor | None = None,
        attacked: BatchDenoiser | None = None,
        regularize: bool = True,
        step_index: int | None = None,
    ) -> Loss:
        """sample, noise: (B, ...); t: (B,).

        levels: (B,) or (B, C), the noise already in each sample, or channel, in the sample's units
            (`ambient`).
        attacked: the network that an attack queries; by default `denoise`.
        regularize: False leaves the penalty out, at the cost of a plain step.
        step_index: number of this call, 0, 1, ..., the same on all ranks. `penalty_every`, and a
            share that is not a whole number of samples, are counted by it. None takes the largest
            share that there is.
        """
        alpha, sigma = self.process(t, sample)
        noisy = self.corrupt(sample, noise, alpha, sigma, generator, levels)
        count, factor = rows_at_step(len(t), self.penalty_fraction, self.penalty_every, step_index)
        attacked = attacked or denoise
        if self.penalty is None or not regularize or not count:
            prediction, penalty = denoise(noisy, t, all_rows(t)), sample.new_zeros(0)
        elif count == len(t):
            prediction, penalty = self._penalize_all(denoise, attacked, noisy, t, generator)
        else:
            gate = self.penalty.weighting.mean_gate(alpha, sigma)
            rows, row_factor = choose_rows(gate, count, generator)
            prediction, penalty = self._penalize_some(denoise, attacked, noisy, t, rows, generator)
            factor = factor * row_factor
        denoising = self.denoising(prediction.float(), noisy, sample, noise, alpha, sigma, levels)
        return Loss(denoising, factor * penalty)

    def _penalize_all(self, denoise, attacked, noisy, t, generator) -> tuple[Tensor, Tensor]:
        """=>  prediction; penalty of all rows. One pass a branch, with the same dropout masks."""
        rows = all_rows(t)
        replayed = shared_dropout(lambda network, x: network(x, t, rows), noisy.device)
        prediction = replayed(denoise, noisy)
        return prediction, self.penalty.per_sample(
            lambda x: replayed(denoise, x),
            noisy,
            t,
            prediction,
            generator,
            attacked=lambda x: replayed(attacked, x),
        )

    def _penalize_some(self, denoise, attacked, noisy, t, rows, generator) -> tuple[Tensor, Tensor]:
        """=>  prediction of all rows; penalty of `rows`. One pass for both branches: a few rows by
        themselves take almost as long as a full batch."""
        prediction = None

        def query(x: Tensor) -> Tensor:
            repeated = rows.repeat(len(x) // len(rows))  # an attack may stack two inputs
            return attacked(x, t[repeated], repeated)

        def branches(perturbed: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal prediction
            both = torch.cat([all_rows(t), rows])
            answers = denoise(torch.cat([noisy, perturbed]), t[both], both)
            prediction, moved = answers.split([len(t), len(rows)])
            return moved, prediction[rows]

        penalty = self.penalty.of_branches(
            branches, query, noisy[rows], t[rows], generator=generator
        )
        return prediction, penalty

    def corrupt(self, sample, noise, alpha, sigma, generator, levels) -> Tensor:
        """=>  noisy (B, ...). Peers override this, or `denoising`, or both."""
        return alpha * sample + sigma * noise

    def denoising(self, prediction, noisy, sample, noise, alpha, sigma, levels) -> Tensor:
        """=>  the loss of each sample, (B,)."""
        target = self.process.parameterization.target(sample, noise, alpha, sigma)
        return (prediction - target).square().flatten(1).mean(1)


def all_rows(t: Tensor) -> Tensor:
    """The row numbers of a whole batch, (B,)."""
    return torch.arange(len(t), device=t.device)
