"""latent-robust: diffusion models that learn clean images from dirty training data.

In your own training loop:

    penalty = EquivariancePenalty(NoiseProcess.from_scheduler(noise_scheduler))       # once
    loss = loss + penalty(lambda x: unet(x, t, text).sample, noisy, t, prediction)    # in the step
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names

__version__ = "0.2.0"

_MODULES = {
    "OBJECTIVES": "core",
    "EquivariancePenalty": "core",
    "NoiseProcess": "core",
    "Objective": "core",
    "Parameterization": "core",
    "RadiusSchedule": "core",
    "Weighting": "core",
    "make_objective": "core",
    "shared_dropout": "core",
}

__all__ = ["__version__", *sorted(_MODULES)]

if TYPE_CHECKING:  # a type checker needs the names themselves; running code must not load torch
    from .core import OBJECTIVES as OBJECTIVES
    from .core import EquivariancePenalty as EquivariancePenalty
    from .core import NoiseProcess as NoiseProcess
    from .core import Objective as Objective
    from .core import Parameterization as Parameterization
    from .core import RadiusSchedule as RadiusSchedule
    from .core import Weighting as Weighting
    from .core import make_objective as make_objective
    from .core import shared_dropout as shared_dropout
else:
    __getattr__ = lazy_names(__name__, _MODULES)
