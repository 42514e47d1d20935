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
    displacement: Callable[[Tensor], Tensor],
    like: Tensor,
    radius: Tensor,
    generator: torch.Generator | None = None,
    steps: int = 1,
    *,
    by_gradient: bool = True,
) -> Tensor:
    """The w within the radius that *displaces* the prediction most, searched for from a random
    start w0 in steps of the sign of a direction:

        w = clip(w0 + radius * sign(d), -radius, radius)

    by_gradient: d is the gradient of || displacement(w0) ||^2 (FGSM; PGD for more steps), 2 J^T J
    w0 for the Jacobian J of the prediction by the noise. Otherwise d is the displacement itself,
    J w0, for the price of forward passes; to be given that of the *implied noise*, where other
    parameterizations are trained. An optimal denoiser's is sigma times the gradient of a function
    of its input (- log density of noisy data; Tweedie's formula, Efron 2011), so J is symmetric and
    J w0 = J^T w0; for Gaussian data it has eigenvalues in [0, 1], 1 where there are no data. So
    both are steps of power iteration toward the directions that leave the data's manifold, the
    gradient two at a time.

    displacement: w -> prediction at noisy + sigma * w, less that at noisy, float32; like: (B, ...);
    radius: (B, 1 or C, ...).  =>  w (B, ...), detached.

    The displacement is maximised and not the residual. Differentiates for w only; no parameter's
    `.grad` is touched. What is differentiated is summed in float32: a mean underflows in half
    precision, and sign(0) = 0 would leave holes in the attack.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be >= 1, got {steps}")
    w = random_perturbation(like, radius, generator)
    step_size = radius if steps == 1 else 2.5 * radius / steps  # Madry et al. 2018
    for _ in range(steps):
        if by_gradient:
            w.requires_grad_(True)
            with torch.enable_grad():
                (direction,) = torch.autograd.grad(displacement(w).square().sum(), w)
        else:
            with torch.no_grad():
                direction = displacement(w)
            # Before torch 2.10 autocast remembers weights that were cast under no_grad, without
            # gradient (pytorch#165068), for all of the context that the caller may have opened.
            torch.clear_autocast_cache()
            # Of two outputs in half precision many a difference is 0: further along w itself, then.
            direction = torch.where(direction == 0, w, direction)
        # What is not finite is not hidden: the loss at w is non-finite too, and is skipped.
        w = (w.detach() + step_size * direction.sign()).clamp(-radius, radius)
    return w


def displacement_of(
    denoise: Callable[[Tensor], Tensor], noisy: Tensor, prediction: Tensor | None, once: bool
) -> Callable[[Tensor], Tensor]:
    """x -> the prediction at x less that at `noisy`, float32. prediction: at `noisy`, where it is
    there; once: that function is called once, without gradient: both in one batch, then."""
    if prediction is None and once:

        def both(x: Tensor) -> Tensor:
            at_x, at_noisy = denoise(torch.cat([x, noisy])).float().chunk(2)
            return at_x - at_noisy

        return both
    if prediction is None:
        with torch.no_grad():
            prediction = denoise(noisy)
    still = prediction.detach().float()
    return lambda x: denoise(x).float() - still
