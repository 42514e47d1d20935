"""How far the noise is moved, as a function of the noise level: the paper's r(t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class RadiusSchedule:
    """r(t) = scale * sigma(t)**rho + bias, with bias ~ U(bias_min, bias_max) per sample.

    In units of the noise's standard deviation. The random bias keeps the penalty from vanishing as
    sigma -> 0. The paper uses rho 2 and a smallest bias of 8/255.

    Raises ValueError for negative values, bias_min > bias_max, or a radius that is 0 everywhere.
    """

    rho: float = 2.0
    scale: float = 1.0
    bias_min: float = 8 / 255
    bias_max: float = 16 / 255

    def __post_init__(self) -> None:
        if not (self.rho >= 0 and self.scale >= 0):  # refuses NaN as well
            raise ValueError(f"`rho` and `scale` must be >= 0, got {self.rho} and {self.scale}")
        if not 0 <= self.bias_min <= self.bias_max:
            raise ValueError(
                f"need 0 <= bias_min <= bias_max, got {self.bias_min} and {self.bias_max}"
            )
        if self.scale == 0 and self.bias_max == 0:
            raise ValueError(
                "`scale` 0 and `bias_max` 0 give a radius of 0 everywhere; to switch the "
                "regularizer off, use weight 0"
            )

    def __call__(self, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """sigma: (B, 1, ...), in [0, 1].  =>  radius (B, 1, ...)."""
        u = sigma.new_empty(sigma.shape).uniform_(generator=generator)
        bias = self.bias_min + (self.bias_max - self.bias_min) * u
        return self.scale * sigma**self.rho + bias


def unit_sigma(alpha: Tensor, sigma: Tensor) -> Tensor:
    """sigma of the same process, with samples scaled so that it lies in [0, 1]. Any one shape.

    That is sigma / sqrt(alpha^2 + sigma^2) for a variance-exploding process. All others already
    have alpha^2 + sigma^2 <= 1 and keep their sigma.
    """
    size = (alpha.square() + sigma.square()).sqrt()
    return (sigma / size).where(size > 1.001, sigma)  # rounding is no reason to rescale
