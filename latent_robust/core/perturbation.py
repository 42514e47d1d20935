"""Perturbations `w` of the noise.

Units, stated once for pixel and latent space: `w` is in noise units. The network sees
`noisy + sigma * w`, that is, the noise was `noise + w`; |w| <= radius elementwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def random_perturbation(
    like: Tensor, radius: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """w ~ U(-radius, radius) elementwise.

    like: (B, ...); radius: (B, 1 or C, ...), >= 0.  =>  (B, ...), float32.
    """
    u = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    return radius * (2 * u - 1)


def adversarial_perturbation(
    moved: Callable[[Tensor], Tensor],
    prediction: Tensor,
    radius: Tensor,
    generator: torch.Generator | None = None,
    steps: int = 1,
) -> Tensor:
    """The w within the radius that *displaces* the prediction most: FGSM from a random start
    (steps = 1), or PGD.

    moved: w -> the prediction at noisy + sigma * w; prediction: (B, ...) at w = 0;
    radius: (B, 1 or C, ...).  =>  w (B, ...), detached.

    Maximises || moved(w) - prediction ||^2 and not the residual: the attack looks for the
    directions that leave the data's manifold. Differentiates for w only; no parameter's `.grad`
    is touched. The objective is summed in float32: a mean underflows in half precision, and
    sign(0) = 0 would leave holes in the attack.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be >= 1, got {steps}")
    start = prediction.detach().float()
    w = random_perturbation(start, radius, generator)
    step_size = radius if steps == 1 else 2.5 * radius / steps  # Madry et al. 2018
    for _ in range(steps):
        w.requires_grad_(True)
        with torch.enable_grad():
            displacement = (moved(w).float() - start).square().sum()
            (gradient,) = torch.autograd.grad(displacement, w)
        # A non-finite gradient is not hidden: the loss at w is non-finite too, and is skipped.
        w = (w.detach() + step_size * gradient.sign()).clamp(-radius, radius)
    return w
