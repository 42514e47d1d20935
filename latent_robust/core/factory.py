"""From the name of an objective to the objective. The one place where the choice is made."""

from __future__ import annotations

import torch

from . import peers
from .batch import Objective
from .objective import EquivariancePenalty
from .process import NoiseProcess
from .radius import RadiusSchedule
from .registry import ADVERSARIAL, GAMMA, HUBER_C, OBJECTIVES
from .weighting import Weighting


def make_objective(
    name: str,
    process: NoiseProcess,
    *,
    weighting: Weighting | None = None,
    radius: RadiusSchedule | None = None,
    attack: str = "displacement",
    attack_steps: int = 1,
    penalty_fraction: float = 1.0,
    penalty_every: int = 1,
    precision: torch.dtype | None = None,
    huber_c: float = HUBER_C,
    gamma: float = GAMMA,
) -> Objective:
    """name: a key of OBJECTIVES. attack: one of ADVERSARIAL, for robust-adversarial and invariance.

    The other settings are those of EquivariancePenalty, Objective and the peers (peers.py). An
    objective ignores settings that it does not use. Raises ValueError for an unknown name or
    attack, and for values out of range.
    """
    if attack not in ADVERSARIAL:
        raise ValueError(
            f"`attack` must be one of {', '.join(ADVERSARIAL)}, got {attack!r}; a random one is "
            "the objective robust-random"
        )

    def penalized(attack: str, equivariant: bool = True) -> Objective:
        penalty = EquivariancePenalty(
            process,
            weighting,
            radius,
            attack=attack,
            attack_steps=attack_steps,
            equivariant=equivariant,
            precision=precision,
        )
        return Objective(process, penalty, penalty_fraction, penalty_every)

    match name:
        case "ddpm":
            return Objective(process)
        case "robust-adversarial":
            return penalized(attack)
        case "robust-random":
            return penalized("random")
        case "invariance":
            return penalized(attack, equivariant=False)
        case "pseudo-huber":
            return peers.PseudoHuber(process, huber_c)
        case "hellinger":
            return peers.Hellinger(process, huber_c)
        case "input-perturbation":
            return peers.InputPerturbation(process, gamma)
        case "at-diff":
            return peers.AdversarialDenoising(process, radius, attack_steps)
        case "ambient" | "audited":
            return peers.Ambient(process)
    raise ValueError(f"unknown objective {name!r}; one of: {', '.join(OBJECTIVES)}")
