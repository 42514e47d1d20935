"""How much the regularizer counts at each noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real

import torch
from torch import Tensor


class Preset(StrEnum):
    PAPER = "paper"
    NORMALIZED = "normalized"
    BAND = "band"

    @classmethod
    def _missing_(cls, value):
        raise ValueError(f"`preset` must be one of {', '.join(cls)}, got {value!r}")


@dataclass(frozen=True)
class Weighting:
    """The factor in front of mean(residual^2), per sample.

    paper       weight * sqrt(3) / r(t)            (our reading of the paper: 1 / std of U(-r, r))
    normalized  weight / mean(w^2)                 the same pull at every noise level
    band        weight * gate(t) / mean(w^2)       gate = min(1, (band / s)^2), s = sigma / alpha

    `band` is a standard deviation in the data's own units: the regularizer acts where the
    contamination lives and lets go where global structure is decided. It may be one for each
    channel, where the contamination is stronger in some than in others, as in latents: then so is
    the gate, w reaches as far in each channel as the square root of its gate, and the factor has
    the mean of the gates. So each channel's noise gets its own gate. For Gaussian data of
    standard deviation tau, weight * gate = L makes the optimal denoiser that of
    tau / sqrt(1 + L); the same weight means the same in every parameterization. Sampling then ends
    at tau * spread(tau): noise shrinks more than structure does.
    """

    preset: Preset | str = Preset.BAND
    weight: float = 3.0
    band: float | Sequence[float] = 0.5

    def __post_init__(self):
        object.__setattr__(self, "preset", Preset(self.preset))
        if isinstance(self.band, Sequence) and not isinstance(self.band, str):
            object.__setattr__(
                self, "band", self.band[0] if len(self.band) == 1 else tuple(self.band)
            )
        if not self.weight >= 0:  # nor NaN
            raise ValueError(
                f"`weight` must be >= 0, got {self.weight}; use 0 to switch the regularizer off"
            )
        numbers = all(isinstance(band, Real) and band > 0 for band in self.bands)
        if not self.bands or not numbers:
            raise ValueError(
                f"`band` must be > 0, a number or a list of one for each channel, got {self.band}; "
                "it is a noise level in units of the data"
            )

    def __str__(self) -> str:
        low, high = min(self.bands), max(self.bands)
        band = f"{low:g} to {high:g}, by channel" if len(self.bands) > 1 else f"{low:g}"
        return f"weight {self.weight:g}, band {band}"

    @property
    def bands(self) -> tuple[float, ...]:
        """One, or one for each channel."""
        return self.band if isinstance(self.band, tuple) else (self.band,)

    def gate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """In [0, 1]; finite at alpha = 0 and at sigma = 0. alpha, sigma: (B, 1, ...), or of any
        shape for a single band.  =>  like them, or (B, C, ...)."""
        if self.preset is not Preset.BAND:
            return torch.ones_like(sigma)
        band = self.band
        if isinstance(band, tuple):
            # Filled on the device: a copy to it would make the host wait.
            values = torch.cat([sigma.new_full((1,), value) for value in band])
            band = values.view(-1, *[1] * (sigma.ndim - 2))
        return (band * alpha / sigma.clamp_min(1e-12)).square().clamp_max(1)

    def mean_gate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the channels' gates. alpha, sigma: (B, 1, ...).  =>  (B,)."""
        return self.gate(alpha, sigma).flatten(1).mean(1)

    def channel_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How far w goes in each channel, over how far it goes where that is most. alpha, sigma:
        (B, 1, ...).  =>  (B, 1 or C, ...); 1 where all gates are shut."""
        gate = self.gate(alpha, sigma)
        widest = gate.amax(1, keepdim=True)
        return torch.where(widest > 0, (gate / widest.clamp_min(1e-30)).sqrt(), 1.0)

    def std_ratio(self, tau: float) -> float:
        """Standard deviation at which the probability-flow ODE ends for Gaussian data of standard
        deviation tau, over tau: 1 is untouched, 0 is gone.

        dy/ds = (y - x0_hat) / s with the minimiser x0_hat of the loss, integrated in closed form;
        `normalized` gives 1 / sqrt(1 + weight). Directions that an attack favours see a larger
        weight than this. Not defined for `paper`, whose weight depends on the radius.
        """
        if self.preset is Preset.PAPER:
            raise ValueError("the spread is known for the presets `normalized` and `band`")
        lam, t2 = self.weight, tau**2
        shrunk = t2 / (1 + lam)
        if self.preset is Preset.NORMALIZED:
            return (shrunk / t2) ** 0.5
        if isinstance(self.band, tuple):
            raise ValueError("the spread is known for one band; see forecast_std for several")
        # Above the band s^2 L = lam b^2 is constant: d ln y / ds = (s^2 + A) / (s (s^2 + C)).
        b2 = self.band**2
        a, c = lam * b2, lam * b2 + t2
        above = b2 ** (a / (2 * c)) * (b2 + c) ** (t2 / (2 * c))
        return above * (shrunk / (b2 + shrunk)) ** 0.5 / tau

    def __call__(self, w: Tensor, radius: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """w: (B, ...); alpha, sigma: (B, 1, ...); radius: (B, 1 or C, ...).  =>  (B,)."""
        # A radius of exactly 0 means w = 0 and a residual of 0: the floors keep 0 / 0 at 0.
        if self.preset is Preset.PAPER:
            return self.weight * (3**0.5 / radius.clamp_min(1e-10)).flatten()
        mean_square = w.square().flatten(1).mean(1).clamp_min(1e-20)
        return self.weight * self.mean_gate(alpha, sigma) / mean_square
