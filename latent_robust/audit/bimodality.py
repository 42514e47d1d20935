"""Whether scores form one group or two."""

from __future__ import annotations

import torch
from torch import Tensor

# Otsu's criterion, the share of the variance that lies between the two groups, is 0.75 for evenly
# spread scores: only what is further apart than that is two groups. A few scores come apart by
# chance: with 1 / N more, one normal group is taken for two in at most 2 % of cases. Fewer than 6
# never are two groups.
TWO_GROUPS = 0.8


def otsu(values: Tensor) -> tuple[float, float]:
    """The threshold that leaves the least variance within two groups (Otsu 1979), exactly, and the
    share of the variance that lies between these, in [0, 1]. values: (N,); of a single one: 0."""
    if len(values) < 2:
        return float(values[0]), 0.0
    ordered = values.double().sort().values
    count = torch.arange(1, len(ordered))
    low = ordered.cumsum(0)[:-1] / count
    high = (ordered.sum() - ordered.cumsum(0)[:-1]) / (len(ordered) - count)
    share = count / len(ordered)
    between = share * (1 - share) * (high - low).square()
    best = int(between.argmax())
    variance = ordered.var(correction=0).clamp_min(1e-12)
    threshold = (ordered[best] + ordered[best + 1]) / 2
    return float(threshold), float(between[best] / variance)


def are_two_groups(separation: float, count: int) -> bool:
    """separation: of `count` scores, as `otsu` gives it."""
    return separation > TWO_GROUPS + 1 / count
