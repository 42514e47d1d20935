"""The half-precision correction of the penalty.

At low noise bfloat16 rounds `noisy + sigma * w` by a good part of sigma * w. What rounding adds to
w is part of how far the prediction must move, so the penalty is computed for the w that the network
really sees.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_network_sees(
    noisy: Tensor, w: Tensor, sigma: Tensor, precision: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """noisy, w: (B, ...); sigma: (B, 1, ...); precision: of the network's input, by default
    `noisy`'s own.  =>  the perturbed input, rounded but in noisy's dtype; and the w it amounts to.
    """
    precision = precision or noisy.dtype
    perturbed = (noisy + sigma * w).to(precision).to(noisy.dtype)
    if precision.itemsize < 4:
        w = (perturbed.float() - noisy.to(precision).float()) / sigma.clamp_min(1e-12)
    return perturbed, w
