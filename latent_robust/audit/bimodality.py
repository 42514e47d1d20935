"""Decide whether scores are bimodal: two groups, clean and dirty, or only one.

A threshold always splits scores in two; only a bimodal distribution makes the split meaningful.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Otsu's criterion is the share of the variance that lies between the two classes. Evenly spread
# scores give 0.75, so bimodal scores must exceed this. Few scores exceed it by chance: with 1 / N
# added, one normal class is taken for two in at most 2 % of cases. Fewer than 6 scores are never
# bimodal.
MIN_SEPARATION = 0.8


def otsu(values: Tensor) -> tuple[float, float]:
    """Otsu's threshold (Otsu 1979), computed exactly, and its criterion.

    values: (N,), N >= 1. The threshold leaves the least variance within the two classes. The
    criterion is the share of the variance between the classes, in [0, 1]; 0 for a single value.
    """
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


def is_bimodal(separation: float, count: int) -> bool:
    """separation: Otsu's criterion of `count` scores, in [0, 1]."""
    return separation > MIN_SEPARATION + 1 / count
