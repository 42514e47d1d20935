"""One name for each objective; the one place where the choice is made."""

from __future__ import annotations

import torch

from .objective import EquivariancePenalty, Objective, RobustObjective
from .peers import AdversarialDenoising, Ambient, InputPerturbation, PseudoHuber
from .perturbation import ADVERSARIAL
from .process import NoiseProcess
from .radius import RadiusSchedule
from .weighting import Weighting

OBJECTIVES = {
    "ddpm": "plain denoising",
    "robust-adversarial": "the regularizer, perturbed where it moves the prediction most",
    "robust-random": "the regularizer, perturbed at random",
    "invariance": "the regularizer without its equivariance; a negative control",
    "pseudo-huber": "scheduled pseudo-Huber loss",
    "input-perturbation": "DDPM-IP",
    "at-diff": "adversarial training of the denoising loss itself",
    "ambient": "ambient diffusion, given the noise level of each sample",
    "audited": "ambient diffusion with the levels that a trained model finds in its own data",
}

# Those that train on samples at no less noise than these have themselves.
LEVELLED = frozenset({"ambient", "audited"})

# Those that have the regularizer, and so its settings and its cost.
REGULARIZED = frozenset({"robust-adversarial", "robust-random", "invariance"})


def make_objective(
    name: str,
    process: NoiseProcess,
    *,
    weighting: Weighting | None = None,
    radius: RadiusSchedule | None = None,
    attack: str = "displacement",
    attack_steps: int = 1,
    fraction: float = 1.0,
    every: int = 1,
    precision: torch.dtype | None = None,
    huber_c: float = 0.1,
    gamma: float = 0.1,
) -> Objective:
    """name: a key of OBJECTIVES; attack: of robust-adversarial and invariance, one of ADVERSARIAL;
    what a name does not use is ignored. ValueError otherwise."""
    if attack not in ADVERSARIAL:
        raise ValueError(
            f"`attack` must be one of {', '.join(ADVERSARIAL)}, got {attack!r}; a random one is "
            "the objective robust-random"
        )

    def penalty(**kind) -> EquivariancePenalty:
        return EquivariancePenalty(
            process, weighting, radius, attack_steps=attack_steps, precision=precision, **kind
        )

    match name:
        case "ddpm":
            return Objective(process)
        case "robust-adversarial":
            return RobustObjective(process, penalty(attack=attack), fraction, every)
        case "robust-random":
            return RobustObjective(process, penalty(attack="random"), fraction, every)
        case "invariance":
            control = penalty(attack=attack, equivariant=False)
            return RobustObjective(process, control, fraction, every)
        case "pseudo-huber":
            return PseudoHuber(process, huber_c)
        case "input-perturbation":
            return InputPerturbation(process, gamma)
        case "at-diff":
            return AdversarialDenoising(process, radius, attack_steps)
        case "ambient" | "audited":
            return Ambient(process)
    raise ValueError(f"unknown objective {name!r}; one of: {', '.join(OBJECTIVES)}")
