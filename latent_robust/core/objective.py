"""START HERE. The paper's regularizer, and nothing else.

"Why Adversarially Train Diffusion Models?" (ICLR 2026), in our notation:

    noisy      = alpha(t) * sample + sigma(t) * noise                         process.py
    prediction = denoise(noisy, t)
    w          = a perturbation of the noise, |w| <= radius(t)                perturbation.py
    residual   = denoise(noisy + sigma * w, t) - prediction - shift(w)        equivariance
    penalty    = weighting(t) * mean(residual^2)                              weighting.py

If the noise moves by w, the prediction must move with it. Then the clean sample that the prediction
implies does not move. The paper's joint objective L_AT is the denoising loss plus this penalty;
batch.py adds the two.
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

Denoiser = Callable[[Tensor], Tensor]  # noisy (B, ...) => prediction (B, ...); t is already bound
Branches = Callable[[Tensor], tuple[Tensor, Tensor]]  # perturbed => predictions at perturbed, noisy


class EquivariancePenalty:
    """The second term of the paper's L_AT, for any training loop.

    attack: "displacement", "gradient" (the paper's) or "random"; see perturbation.py.
    attack_steps: 1 is FGSM, more is PGD. "random" ignores it.
    equivariant: False trains *invariance*, shift(w) = 0, as adversarial training of classifiers
        does. It is the paper's negative control.
    precision: the dtype to which the network casts its input, if that is not `noisy`'s own dtype
        (autocast); see rounding.py.

    Raises ValueError for an unknown attack, for attack_steps < 1, and for invariance of a network
    that predicts the clean sample, where shift(w) is 0 anyway.
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
        """The penalty: a scalar to add to the denoising loss.

        denoise: noisy (B, ...) => prediction (B, ...), with `t` and all conditions bound. A network
            with dropout needs `shared_dropout`.
        noisy: (B, ...).
        t: (B,), in the unit of the scheduler's `timesteps`. For flow matching that is
            1000 * sigma, even if the network itself takes sigma (FLUX).
        prediction: `denoise(noisy)`, *not detached*: the gradient must flow through both branches,
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
        """The same, one value per sample: (B,).

        attacked: the network that the attack queries, by default `denoise`. Under
            DistributedDataParallel it must be the unwrapped network, whose extra passes do not
            touch the gradient buckets.
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
        unperturbed: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """THE LOSS, one value per sample: (B,). Both branches may share one forward pass.

        branches: perturbed (B, ...) => the predictions at `perturbed` and at `noisy`, both with
            gradient.
        unperturbed: the prediction at `noisy`, if the caller already has it. Without it the attack
            queries `attacked` for it.
        """
        alpha, sigma = self.process(t, noisy)
        radius = self.radius_at(alpha, sigma, generator)
        w, perturbed = self.perturb(attacked, noisy, alpha, sigma, radius, unperturbed, generator)
        moved, prediction = branches_with_gradient(*branches(perturbed))
        residual = moved - prediction - self.shift(w, alpha, sigma)
        return self.weighting(w, radius, alpha, sigma) * residual.square().flatten(1).mean(1)

    def radius_at(self, alpha: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        """The paper's r(t), narrower in channels that have a narrower band: (B, 1 or C, ...)."""
        radius = self.radius(unit_sigma(alpha, sigma), generator)
        return radius * self.weighting.channel_scale(alpha, sigma)

    def perturb(
        self,
        denoise: Denoiser,
        noisy: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        radius: Tensor,
        unperturbed: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """=>  w (B, ...), |w| <= radius but for rounding; the perturbed input, the paper's x_{t+w}.

        unperturbed: as for `of_branches`. An attack maximises the paper's J, the squared norm of
        the displacement: of the prediction ("gradient") or of the noise that it implies
        ("displacement")."""
        if self.attack == "random":
            w = random_perturbation(noisy, radius, generator)
            return as_network_sees(noisy, w, sigma, self.precision)
        by_gradient = self.attack == "gradient"
        one_query = not by_gradient and self.attack_steps == 1
        change_at = displacement_of(denoise, noisy, unperturbed, one_query)

        def displacement(w: Tensor) -> Tensor:
            change = change_at(as_network_sees(noisy, w, sigma, self.precision)[1])
            if by_gradient:
                return change
            return self.process.parameterization.to_noise(sigma * w, change, alpha, sigma)

        w = adversarial_perturbation(
            displacement, noisy, radius, generator, self.attack_steps, by_gradient=by_gradient
        )
        return as_network_sees(noisy, w, sigma, self.precision)

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
