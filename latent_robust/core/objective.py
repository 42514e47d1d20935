"""START HERE. The paper's regularizer, and nothing else.

"Why Adversarially Train Diffusion Models?" (ICLR 2026), in our notation:

    noisy      = alpha(t) * sample + sigma(t) * noise
    prediction = denoise(noisy, t)
    w          = a perturbation of the noise, |w| <= radius(t)                perturbation.py
    residual   = denoise(noisy + sigma * w, t) - prediction - shift(w)        equivariance
    penalty    = weighting(t) * mean(residual^2)                              weighting.py

Move the noise by w, and the prediction must move with it. Then the clean sample that the
prediction implies stays where it is. The paper's joint objective L_AT is the denoising loss plus
this penalty; batch.py adds the two up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .parameterization import Parameterization
from .perturbation import adversarial_perturbation, displacement_of, random_perturbation
from .process import NoiseProcess
from .radius import RadiusSchedule, unit_sigma
from .registry import ATTACKS
from .rounding import as_network_sees
from .weighting import Weighting

Denoiser = Callable[[Tensor], Tensor]  # noisy (B, ...) => prediction (B, ...), time already bound
Branches = Callable[[Tensor], tuple[Tensor, Tensor]]  # perturbed => predictions at perturbed, noisy


class EquivariancePenalty:
    """The second term of L_AT, for any training loop.

    attack: "displacement", "gradient" (the paper's) or "random", see perturbation.py.
    attack_steps: more than 1 gives PGD and its like; not used by "random".
    equivariant: False gives the *invariance* of adversarially trained classifiers, shift(w) = 0;
        the paper's negative control.
    precision: the dtype that the network casts its input to, if that is not `noisy`'s own dtype
        (autocast). See rounding.py.

    Raises ValueError for an unknown attack, attack_steps < 1, and invariance of a predictor of the
    clean sample, where shift(w) is 0 anyway.
    """

    def __init__(
        self,
        process: NoiseProcess,
        weighting: Weighting | None = None,
        radius: RadiusSchedule | None = None,
        *,
        attack: str = "displacement",
        attack_steps: int = 1,
        equivariant: bool = True,
        precision: torch.dtype | None = None,
    ):
        if attack not in ATTACKS:
            raise ValueError(f"`attack` must be one of {', '.join(ATTACKS)}, got {attack!r}")
        if attack_steps < 1:
            raise ValueError(f"`attack_steps` must be >= 1, got {attack_steps}")
        if not equivariant and process.parameterization is Parameterization.SAMPLE:
            raise ValueError(
                "invariance is the same as equivariance for a network that predicts the clean "
                "sample, so there is no invariance to compare with; use another parameterization"
            )
        self.process = process
        self.weighting = weighting or Weighting()
        self.radius = radius or RadiusSchedule()
        self.attack = attack
        self.attack_steps = attack_steps
        self.equivariant = equivariant
        self.precision = precision

    def __call__(
        self,
        denoise: Denoiser,
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The penalty: a scalar to add to the loss.

        denoise: noisy (B, ...) => prediction (B, ...), with `t` and conditions bound. A network
            with dropout needs `shared_dropout`.
        noisy: (B, ...).
        t: (B,), in the unit of the scheduler's `timesteps`; 1000 * sigma for flow matching, also
            where the network itself is given sigma (FLUX).
        prediction: `denoise(noisy)`, *not detached*. The gradient must flow through both branches,
            or training diverges.
        """
        return self.per_sample(denoise, noisy, t, prediction, generator).mean()

    def per_sample(
        self,
        denoise: Denoiser,
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None = None,
        attacked: Denoiser | None = None,
    ) -> Tensor:
        """As above, one value a sample, (B,).

        attacked: the network that the attack queries. Under DistributedDataParallel this must be
            the unwrapped one, whose extra passes do not touch the gradient buckets.
        """
        return self.of_branches(
            lambda perturbed: (denoise(perturbed), prediction),
            attacked or denoise,
            noisy,
            t,
            prediction,
            generator,
        )

    def of_branches(
        self,
        branches: Branches,
        attacked: Denoiser,
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """THE LOSS, (B,). Both branches may share one forward pass.

        branches: perturbed (B, ...) => the predictions at `perturbed` and at `noisy`, both with
            gradient. prediction: at `noisy`, if it is known before w is chosen.
        """
        alpha, sigma = self.process(t, noisy)
        radius = self.radius(unit_sigma(alpha, sigma), generator)
        radius = radius * self.weighting.channel_scale(alpha, sigma)

        w = self.perturb(attacked, noisy, alpha, sigma, radius, prediction, generator)
        perturbed, w = as_network_sees(noisy, w, sigma, self.precision)
        moved, prediction = branches_with_gradient(*branches(perturbed))
        residual = moved - prediction - self.shift(w, alpha, sigma)
        return self.weighting(w, radius, alpha, sigma) * residual.square().flatten(1).mean(1)

    def perturb(
        self,
        denoise: Denoiser,
        noisy: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        radius: Tensor,
        prediction: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The perturbation w, (B, ...), |w| <= radius. An attack maximises the paper's J.

        prediction: at `noisy`. If None, an attack queries `denoise` for it, where it can in one
            batch with the perturbed input.
        """
        if self.attack == "random":
            return random_perturbation(noisy, radius, generator)
        by_gradient = self.attack == "gradient"
        one_query = not by_gradient and self.attack_steps == 1
        displacement_at = displacement_of(denoise, noisy, prediction, one_query)

        def displacement(w: Tensor) -> Tensor:
            moved = displacement_at(as_network_sees(noisy, w, sigma, self.precision)[0])
            if by_gradient:
                return moved
            return self.process.parameterization.to_noise(sigma * w, moved, alpha, sigma)

        return adversarial_perturbation(
            displacement, noisy, radius, generator, self.attack_steps, by_gradient=by_gradient
        )

    def shift(self, w: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """How far the prediction must move with w: (B, ...), or 0 for invariance."""
        if not self.equivariant:
            return 0.0
        return self.process.parameterization.shift(w, alpha, sigma)


def branches_with_gradient(moved: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32. Raises ValueError if only one of them has a gradient."""
    if moved.requires_grad != prediction.requires_grad:
        without = "what `denoise` gives" if prediction.requires_grad else "`prediction`"
        raise ValueError(
            f"{without} has no gradient: do not detach it, and do not compute it under no_grad; "
            "the gradient must flow through both branches, or training diverges"
        )
    return moved.float(), prediction.float()
