"""The half-precision correction of the penalty.

At low noise, bfloat16 rounds `noisy + sigma * w` by a large part of sigma * w. The prediction must
move with the rounded input, so the penalty is computed for the w that the network really sees.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_network_sees(
    noisy: Tensor, w: Tensor, sigma: Tensor, precision: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """=>  w including the rounding; the perturbed input, rounded, in noisy's dtype. Both (B, ...).

    noisy, w: (B, ...). sigma: (B, 1, ...). precision: dtype of the network's input, by default
    noisy's own. float32 changes neither.
    """
    precision = precision or noisy.dtype
    perturbed = (noisy + sigma * w).to(precision).to(noisy.dtype)
    if precision.itemsize < 4:
        w = (perturbed.float() - noisy.to(precision).float()) / sigma.clamp_min(1e-12)
    return w, perturbed
