"""Which samples of a batch the regularizer looks at, where it does not look at all of them."""

from __future__ import annotations

import torch
from torch import Tensor


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
