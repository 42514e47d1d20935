"""Perturbations `w` of the noise.

`w` is in noise units, in pixel space and in latent space: the noise becomes `noise + w`, so the
network's input becomes `noisy + sigma * w`. |w| <= radius elementwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def random_perturbation(
    like: Tensor, radius: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """w ~ U(-radius, radius) elementwise; the paper's Robust_ran.

    like: (B, ...). radius: (B, 1 or C, ...), >= 0.  =>  (B, ...), float32.
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
    """The w within the radius that maximises J = || displacement(w) ||^2; the paper's Robust_adv.

    Sign steps along a direction d, from a random start w0 ~ U(-radius, radius):

        w = clip(w0 + radius * sign(d), -radius, radius)

    displacement: w (B, ...) => prediction at noisy + sigma * w, minus that at noisy; float32.
    like: (B, ...). radius: (B, 1 or C, ...), >= 0.
    steps: 1 is FGSM (Goodfellow et al. 2015), more is PGD (Madry et al. 2018).
    by_gradient: True takes d = dJ/dw at w0, as the paper does. False takes d = displacement(w0)
        itself and needs forward passes only; see below.
    =>  w (B, ...), detached. No parameter's `.grad` is changed. Raises ValueError for steps < 1.

    J is the displacement, not the residual: an attack on the residual works less well.

    Why the displacement can replace its gradient: let A be the Jacobian of the prediction by the
    noise. Then d is 2 A^T A w0 by the gradient and A w0 without it. An optimal denoiser's implied
    noise is sigma times the gradient of a scalar function of its input, - log density of the noisy
    data (Tweedie's formula, Efron 2011). So for the *implied noise* A is symmetric and
    A w0 = A^T w0. For Gaussian data its eigenvalues lie in [0, 1] and are 1 where there are no
    data. Both directions are therefore steps of power iteration toward the directions that leave
    the data's manifold; the gradient takes two steps at once. Networks of other parameterizations
    must pass the displacement of their implied noise.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be >= 1, got {steps}")
    w = random_perturbation(like, radius, generator)
    step_size = radius if steps == 1 else 2.5 * radius / steps  # Madry et al. 2018
    for _ in range(steps):
        if by_gradient:
            w.requires_grad_(True)
            with torch.enable_grad():
                # A sum in float32: a mean underflows in half precision, and sign(0) = 0 would leave
                # parts of the input unattacked.
                (direction,) = torch.autograd.grad(displacement(w).square().sum(), w)
        else:
            with torch.no_grad():
                direction = displacement(w)
            # Before torch 2.10, autocast caches the weights that it cast under no_grad, without
            # their gradient (pytorch#165068), until the caller's autocast context ends.
            torch.clear_autocast_cache()
            # Two half-precision outputs often differ by exactly 0; there, go further along w.
            direction = torch.where(direction == 0, w, direction)
        # Non-finite values stay: the loss at w is non-finite too, and the step is skipped.
        w = (w.detach() + step_size * direction.sign()).clamp(-radius, radius)
    return w


def displacement_of(
    denoise: Callable[[Tensor], Tensor],
    noisy: Tensor,
    unperturbed: Tensor | None,
    one_query: bool,
) -> Callable[[Tensor], Tensor]:
    """=>  x (B, ...) => prediction at x, minus the prediction at `noisy`; (B, ...), float32.

    unperturbed: the prediction at `noisy`, if the caller has it.
    one_query: the result is called once, without gradient. A missing `unperturbed` is then computed
        in one batch with the prediction at x, otherwise in a pass of its own.
    """
    if unperturbed is None and one_query:

        def difference(x: Tensor) -> Tensor:
            at_x, at_noisy = denoise(torch.cat([x, noisy])).float().chunk(2)
            return at_x - at_noisy

        return difference
    if unperturbed is None:
        with torch.no_grad():
            unperturbed = denoise(noisy)
    at_noisy = unperturbed.detach().float()
    return lambda x: denoise(x).float() - at_noisy
