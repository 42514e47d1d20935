"""Which samples of a batch the penalty is computed on, if not on all of them."""

from __future__ import annotations

from math import ceil, floor

import torch
from torch import Tensor


def rows_at_step(
    batch_size: int,
    penalty_fraction: float,
    penalty_every: int = 1,
    step_index: int | None = None,
) -> tuple[int, float]:
    """=>  how many rows of this step's batch are penalized; the factor of their penalties.

    Every `penalty_every`-th step penalizes `penalty_every` times as many rows, the other steps
    none. The pass of an attack takes almost as long for two rows as for eight, so fewer and larger
    passes cost less. The factors make the sum over the steps equal to that of
    `penalty_fraction * batch_size` rows in each step.

    If that number is not whole, some of these steps penalize one row more than others, which may
    penalize none. step_index: 0, 1, ...; None gives the largest number, with factor 1.
    """
    share = round(penalty_fraction * batch_size, 9)  # in floating point 0.07 * 100 is not 7
    if step_index is None:
        return ceil(round(penalty_every * share, 6)), 1.0
    penalized_steps, rest = divmod(step_index + 1, penalty_every)
    if rest:
        return 0, 0.0
    portion = round(penalty_every * share, 6)  # nor is 3 * (4 / 3) equal to 4
    count = floor(penalized_steps * portion) - floor((penalized_steps - 1) * portion)
    return count, count / share


def choose_rows(
    gate: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """=>  rows (count,), int64; factor (count,) = mean(gate) / gate[rows].

    gate: (B,), >= 0. A row's probability is proportional to its gate, and the factor makes the mean
    of the chosen rows' penalties an unbiased estimate of the batch's mean.

    A penalty is its gate times a term that depends much less on t. Sampling in proportion to the
    gate therefore has less variance than uniform sampling, which mostly chooses rows whose gate is
    almost 0. Systematic sampling: evenly spaced points on the cumulative sum of the gate, from a
    random start. A row is chosen twice only if it holds more than 1 / count of the sum.
    """
    gate = gate.float().clamp_min(1e-12)  # all 0 (alpha = 0): any row will do
    start = torch.rand((), generator=generator, device=gate.device)
    points = (torch.arange(count, device=gate.device) + start) / count * gate.sum()
    rows = torch.searchsorted(gate.cumsum(0), points).clamp_max(len(gate) - 1)
    return rows, gate.mean() / gate[rows]
