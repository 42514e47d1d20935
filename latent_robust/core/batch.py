"""The loss of a batch: denoising, plus the penalty of objective.py on a share of the samples.

    L_AT = mean(denoising) + mean(penalty)

This module decides how that is computed: on which rows of the batch (rows.py), in how many passes
through the network, with which dropout masks (dropout.py), and which network an attack may query
under DistributedDataParallel. objective.py and peers.py say what is minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .dropout import shared_dropout
from .levels import Levels
from .objective import EquivariancePenalty
from .process import NoiseProcess
from .registry import check_share
from .rows import choose_rows, rows_at_step

# denoise(noisy (k, ...), t (k,), rows (k,)) => prediction (k, ...). rows: which rows of the batch
# these are, so that the caller can take the same rows of its conditions.
BatchDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Loss:
    """The two terms of L_AT, one value per sample.

    denoising: (B,). penalty: (k,), of the penalized rows, weight included; empty without penalty.
    """

    denoising: Tensor
    penalty: Tensor

    @property
    def total(self) -> Tensor:
        """L_AT, the scalar to differentiate."""
        return self.denoising.mean() + (self.penalty.mean() if self.penalty.numel() else 0.0)


@dataclass(frozen=True)
class Noising:
    """What noises a batch: x_t = alpha * sample + sigma * noise.

    sample, noise: (B, ...). alpha, sigma: (B, 1, ...). levels: of these B samples, for `Ambient`.
    """

    sample: Tensor
    noise: Tensor
    alpha: Tensor
    sigma: Tensor
    levels: Levels | None = None


class Objective:
    """Plain denoising (Ho et al. 2020), plus the paper's penalty on a share of each batch.

    penalty: None, or a penalty of weight 0, is plain training.
    penalty_fraction: share of the samples that are penalized, in (0, 1].
    penalty_every: apply the penalty at every N-th call, to N times as many samples.

    The penalty of a share is an unbiased estimate of the penalty of all samples, at a fraction of
    its cost. Different rows cannot share dropout masks: a network with dropout needs
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
        levels: Levels | None = None,
        attacked: BatchDenoiser | None = None,
        regularize: bool = True,
        step_index: int | None = None,
    ) -> Loss:
        """sample, noise: (B, ...). t: (B,).

        levels: how noisy each of the B samples is, and from which noise level on it is used; for
            `Ambient`.
        attacked: the network that an attack queries, by default `denoise`.
        regularize: False leaves the penalty out, at the cost of plain training.
        step_index: number of this call, 0, 1, ..., equal on all ranks. It decides when
            `penalty_every` applies, and spreads a share that is not a whole number of samples.
            None penalizes the largest number of samples that any step does.
        """
        alpha, sigma = self.process(t, sample)
        noising = Noising(sample, noise, alpha, sigma, levels)
        noisy = self.corrupt(noising, generator)
        attacked = attacked or denoise
        factor: Tensor | float
        count, factor = rows_at_step(len(t), self.penalty_fraction, self.penalty_every, step_index)
        if self.penalty is None or not regularize or not count:
            prediction, values = denoise(noisy, t, all_rows(t)), sample.new_zeros(0)
        elif count == len(t):
            prediction, values = _penalize_all(self.penalty, denoise, attacked, noisy, t, generator)
        else:
            gate = self.penalty.weighting.mean_gate(alpha, sigma)
            rows, row_factor = choose_rows(gate, count, generator)
            prediction, values = _penalize_some(
                self.penalty, denoise, attacked, noisy, t, rows, generator
            )
            factor = factor * row_factor
        denoising = self.denoising(prediction.float(), noisy, noising)
        return Loss(denoising, factor * values)

    def corrupt(self, of: Noising, generator: torch.Generator | None) -> Tensor:
        """=>  noisy (B, ...), the paper's x_t. Peers override this, or `denoising`, or both."""
        return of.alpha * of.sample + of.sigma * of.noise

    def denoising(self, prediction: Tensor, noisy: Tensor, of: Noising) -> Tensor:
        """=>  the first term of L_AT: the mean squared error of each sample, (B,)."""
        return (prediction - self.target(of)).square().flatten(1).mean(1)

    def target(self, of: Noising) -> Tensor:
        """=>  what the network should predict, (B, ...)."""
        return self.process.parameterization.target(of.sample, of.noise, of.alpha, of.sigma)


def _penalize_all(
    penalty: EquivariancePenalty,
    denoise: BatchDenoiser,
    attacked: BatchDenoiser,
    noisy: Tensor,
    t: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """=>  prediction (B, ...); penalty of all rows, (B,).

    One pass per branch, so that both have the same dropout masks.
    """
    rows = all_rows(t)
    replayed = shared_dropout(lambda network, x: network(x, t, rows), noisy.device)
    prediction = replayed(denoise, noisy)
    return prediction, penalty.per_sample(
        lambda x: replayed(denoise, x),
        noisy,
        t,
        prediction,
        generator,
        attacked=lambda x: replayed(attacked, x),
    )


def _penalize_some(
    penalty: EquivariancePenalty,
    denoise: BatchDenoiser,
    attacked: BatchDenoiser,
    noisy: Tensor,
    t: Tensor,
    rows: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """=>  prediction of all rows, (B, ...); penalty of `rows`, (k,).

    One pass for both branches: a pass of a few rows takes almost as long as one of a full batch.
    """
    predictions: list[Tensor] = []  # of all rows, as the one pass gives it

    def query(x: Tensor) -> Tensor:
        repeated = rows.repeat(len(x) // len(rows))  # an attack may stack two inputs
        return attacked(x, t[repeated], repeated)

    def branches(perturbed: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([all_rows(t), rows])
        outputs = denoise(torch.cat([noisy, perturbed]), t[both], both)
        prediction, moved = outputs.split([len(t), len(rows)])
        predictions.append(prediction)
        return moved, prediction[rows]

    values = penalty.of_branches(branches, query, noisy[rows], t[rows], generator=generator)
    return predictions[0], values


def all_rows(t: Tensor) -> Tensor:
    """The row numbers of a whole batch: (B,), int64."""
    return torch.arange(len(t), device=t.device)
