"""latent-robust: diffusion models that learn clean images from dirty training data.

In your own training loop:

    penalty = EquivariancePenalty(NoiseProcess.from_scheduler(noise_scheduler))       # once
    loss = loss + penalty(lambda x: unet(x, t, text).sample, noisy, t, prediction)    # in the step
"""

from .lazy import lazy_names

__version__ = "0.2.0"

_MODULES = {
    name: "core"
    for name in (
        "OBJECTIVES",
        "EquivariancePenalty",
        "NoiseProcess",
        "Objective",
        "Parameterization",
        "RadiusSchedule",
        "Weighting",
        "make_objective",
        "shared_dropout",
    )
}

__all__ = ["__version__", *sorted(_MODULES)]

__getattr__ = lazy_names(__name__, _MODULES)
