"""Which samples of a batch the regularizer looks at, where it does not look at all of them."""

from __future__ import annotations

from math import ceil, floor

import torch
from torch import Tensor


def rows_at_step(
    batch: int, fraction: float, every: int = 1, step_index: int | None = None
) -> tuple[int, float]:
    """How many rows of a batch the penalty looks at in turn 0, 1, ..., and the factor that makes
    the sum over the turns what it would be if each of them looked at `fraction * batch` rows.

    Every `every`-th turn looks at `every` times as many: the attack's pass takes almost as long for
    two rows as for eight, so fewer and fuller ones cost less. Where that is not a whole number some
    of these turns look at one row more than others, which may be at none. Without a turn it is the
    most that there is, with factor 1.  =>  count, factor.
    """
    share = round(fraction * batch, 9)  # 0.07 * 100 is not 7
    if step_index is None:
        return ceil(round(every * share, 6)), 1.0
    passed, rest = divmod(step_index + 1, every)
    if rest:
        return 0, 0.0
    portion = round(every * share, 6)  # nor is 3 * (4 / 3) 4
    count = floor(passed * portion) - floor((passed - 1) * portion)
    return count, count / share


def choose_rows(
    gate: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`count` rows, each as likely as its share of the gate, and the factor that makes the mean of
    their penalties an unbiased estimate of the batch's.

    gate: (B,), >= 0.  =>  rows (count,), int64; factor (count,) = mean(gate) / gate[rows].

    A penalty is its gate times something that depends on t much less: in proportion to the gate,
    a few rows say as much as many that are drawn evenly, most of which lie where the gate is
    almost shut. Systematic sampling: evenly spaced along the running sum of the gate, from a random
    start, so that no row comes twice unless it holds more than 1 / count of the sum.
    """
    gate = gate.float().clamp_min(1e-12)  # all shut (alpha = 0): any row will do
    start = torch.rand((), generator=generator, device=gate.device)
    place = (torch.arange(count, device=gate.device) + start) / count * gate.sum()
    rows = torch.searchsorted(gate.cumsum(0), place).clamp_max(len(gate) - 1)
    return rows, gate.mean() / gate[rows]
