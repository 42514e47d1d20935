"""The method. Imports torch and nothing else, and torch only when a name is used."""

from latent_robust.lazy import lazy_names

_MODULES = {
    "ADVERSARIAL": "registry",
    "ATTACKS": "registry",
    "OBJECTIVES": "registry",
    "AdversarialDenoising": "peers",
    "Ambient": "peers",
    "EquivariancePenalty": "objective",
    "InputPerturbation": "peers",
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

__getattr__ = lazy_names(__name__, _MODULES)
