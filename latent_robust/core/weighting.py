"""How much the regularizer counts at each noise level."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Preset(StrEnum):
    PAPER = "paper"
    NORMALIZED = "normalized"
    BAND = "band"


@dataclass(frozen=True)
class Weighting:
    """The factor in front of mean(residual^2), per sample.

    paper       weight * sqrt(3) / r(t)            (our reading of the paper: 1 / std of U(-r, r))
    normalized  weight / mean(w^2)                 the same pull at every noise level
    band        weight * gate(t) / mean(w^2)       gate = min(1, (band / s)^2), s = sigma / alpha

    `band` is a standard deviation in the data's own units: the regularizer acts where the
    contamination lives and lets go where global structure is decided. For Gaussian data of
    standard deviation tau, weight * gate = L makes the optimal denoiser that of
    tau / sqrt(1 + L) (DESIGN section 2); the same weight means the same in every parameterization.
    """

    preset: Preset | str = Preset.BAND
    weight: float = 1.0
    band: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "preset", Preset(self.preset))
        if self.weight < 0:
            raise ValueError(
                f"`weight` must be >= 0, got {self.weight}; use 0 to switch the regularizer off"
            )
        if self.band <= 0:
            raise ValueError(
                f"`band` must be > 0, got {self.band}; it is a noise level in units of the data"
            )

    def gate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """In [0, 1]; finite at alpha = 0 and at sigma = 0."""
        if self.preset is not Preset.BAND:
            return torch.ones_like(sigma)
        return (self.band * alpha / sigma.clamp_min(1e-12)).square().clamp_max(1)

    def __call__(self, w: Tensor, radius: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """w: (B, ...); radius, alpha, sigma: (B, 1, ...).  =>  (B,)."""
        if self.preset is Preset.PAPER:
            return self.weight * (3**0.5 / radius).flatten()
        # A radius of exactly 0 means w = 0 and a residual of 0: the floor keeps 0 / 0 at 0.
        mean_square = w.square().flatten(1).mean(1).clamp_min(1e-20)
        return self.weight * self.gate(alpha, sigma).flatten() / mean_square
