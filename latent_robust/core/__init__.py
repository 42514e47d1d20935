"""The method. Imports torch and nothing else, and torch only when a name is used."""

from typing import TYPE_CHECKING

from latent_robust.lazy import lazy_names

_MODULES = {
    "ADVERSARIAL": "registry",
    "ATTACKS": "registry",
    "OBJECTIVES": "registry",
    "AdversarialDenoising": "peers",
    "Ambient": "peers",
    "EquivariancePenalty": "objective",
    "Hellinger": "peers",
    "InputPerturbation": "peers",
    "Levels": "levels",
    "Loss": "batch",
    "NoiseProcess": "process",
    "Objective": "batch",
    "ObjectiveFacts": "registry",
    "Parameterization": "parameterization",
    "Preset": "weighting",
    "PseudoHuber": "peers",
    "RadiusSchedule": "radius",
    "Weighting": "weighting",
    "adversarial_perturbation": "perturbation",
    "derive_generator": "seeds",
    "derive_seed": "seeds",
    "facts_of": "registry",
    "forecast_std": "forecast",
    "make_objective": "factory",
    "random_perturbation": "perturbation",
    "shared_dropout": "dropout",
}

__all__ = sorted(_MODULES)

if TYPE_CHECKING:  # a type checker needs the names themselves; running code must not load torch
    from .batch import Loss as Loss
    from .batch import Objective as Objective
    from .dropout import shared_dropout as shared_dropout
    from .factory import make_objective as make_objective
    from .forecast import forecast_std as forecast_std
    from .levels import Levels as Levels
    from .objective import EquivariancePenalty as EquivariancePenalty
    from .parameterization import Parameterization as Parameterization
    from .peers import AdversarialDenoising as AdversarialDenoising
    from .peers import Ambient as Ambient
    from .peers import Hellinger as Hellinger
    from .peers import InputPerturbation as InputPerturbation
    from .peers import PseudoHuber as PseudoHuber
    from .perturbation import adversarial_perturbation as adversarial_perturbation
    from .perturbation import random_perturbation as random_perturbation
    from .process import NoiseProcess as NoiseProcess
    from .radius import RadiusSchedule as RadiusSchedule
    from .registry import ADVERSARIAL as ADVERSARIAL
    from .registry import ATTACKS as ATTACKS
    from .registry import OBJECTIVES as OBJECTIVES
    from .registry import ObjectiveFacts as ObjectiveFacts
    from .registry import facts_of as facts_of
    from .seeds import derive_generator as derive_generator
    from .seeds import derive_seed as derive_seed
    from .weighting import Preset as Preset
    from .weighting import Weighting as Weighting
else:
    __getattr__ = lazy_names(__name__, _MODULES)
