"""The method. Imports torch and nothing else."""

from .dropout import shared_dropout
from .forecast import forecast_spread
from .objective import EquivariancePenalty, Loss, Objective, RobustObjective
from .parameterization import Parameterization
from .peers import AdversarialDenoising, Ambient, InputPerturbation, PseudoHuber
from .perturbation import ATTACKS, adversarial_perturbation, random_perturbation
from .process import NoiseProcess
from .radius import RadiusSchedule
from .registry import LEVELLED, OBJECTIVES, REGULARIZED, make_objective
from .seeds import derive_generator, derive_seed
from .weighting import Preset, Weighting

__all__ = [
    "ATTACKS",
    "LEVELLED",
    "OBJECTIVES",
    "REGULARIZED",
    "AdversarialDenoising",
    "Ambient",
    "EquivariancePenalty",
    "InputPerturbation",
    "Loss",
    "NoiseProcess",
    "Objective",
    "Parameterization",
    "Preset",
    "PseudoHuber",
    "RadiusSchedule",
    "RobustObjective",
    "Weighting",
    "adversarial_perturbation",
    "derive_generator",
    "derive_seed",
    "forecast_spread",
    "make_objective",
    "random_perturbation",
    "shared_dropout",
]
