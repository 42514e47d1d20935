"""latent-robust: diffusion models that learn clean pictures from dirty training data.

In your own training loop:

    penalty = EquivariancePenalty(NoiseProcess.from_scheduler(noise_scheduler))       # once
    loss = loss + penalty(lambda x: unet(x, t, text).sample, noisy, t, prediction)    # in the step
"""

from .core import (
    OBJECTIVES,
    EquivariancePenalty,
    NoiseProcess,
    Objective,
    Parameterization,
    RadiusSchedule,
    RobustObjective,
    Weighting,
    make_objective,
    shared_dropout,
)

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "EquivariancePenalty",
    "NoiseProcess",
    "Objective",
    "Parameterization",
    "RadiusSchedule",
    "RobustObjective",
    "Weighting",
    "make_objective",
    "shared_dropout",
]
