"""How strong the penalty is at each noise level: the paper's lambda_t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real

import torch
from torch import Tensor


class Preset(StrEnum):
    """See Weighting."""

    PAPER = "paper"
    NORMALIZED = "normalized"
    BAND = "band"

    @classmethod
    def _missing_(cls, value: object) -> Preset:
        raise ValueError(f"`preset` must be one of {', '.join(cls)}, got {value!r}")


@dataclass(frozen=True)
class Weighting:
    """The factor in front of mean(residual^2), per sample.

    paper       weight * sqrt(3) / r(t)            our reading of lambda_t: 1 / std of U(-r, r)
    normalized  weight / mean(w^2)                 equally strong at every noise level
    band        weight * gate(t) / mean(w^2)       gate = min(1, (band / s)^2), s = sigma / alpha

    `band` is a standard deviation in the data's own units. The penalty acts at noise levels up to
    the contamination's, and fades out above, where global structure is decided.

    Several bands, one per channel, are for contamination that differs between channels, as it does
    in latents. Then each channel has its own gate, w reaches as far in a channel as the square root
    of its gate, and the factor takes the mean of the gates. So each channel's noise is penalized by
    that channel's gate.

    For Gaussian data of standard deviation tau, with L = weight * gate, the optimal denoiser is
    that of tau / sqrt(1 + L). The same weight has the same effect in every parameterization.
    Sampling then ends at tau * std_ratio(tau): noise shrinks more than structure does.

    Raises ValueError for a negative weight, a band that is not > 0, or an unknown preset.
    """

    preset: Preset | str = Preset.BAND
    weight: float = 3.0
    band: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "preset", Preset(self.preset))
        if isinstance(self.band, Sequence) and not isinstance(self.band, str):
            object.__setattr__(
                self, "band", self.band[0] if len(self.band) == 1 else tuple(self.band)
            )
        if not self.weight >= 0:  # refuses NaN as well
            raise ValueError(
                f"`weight` must be >= 0, got {self.weight}; use 0 to switch the regularizer off"
            )
        positive = all(isinstance(band, Real) and band > 0 for band in self.bands)
        if not self.bands or not positive:
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
        """One for all channels, or one per channel."""
        return self.band if isinstance(self.band, tuple) else (self.band,)

    def gate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha, sigma: (B, 1, ...), or any shape with a single band.  =>  the same shape with a
        single band, else (B, C, ...). In [0, 1]; finite at alpha = 0 and at sigma = 0."""
        if self.preset is not Preset.BAND:
            return torch.ones_like(sigma)
        band: float | Tensor = self.bands[0]
        if len(self.bands) > 1:
            # Created on the device: copying to it would make the host wait.
            values = torch.cat([sigma.new_full((1,), value) for value in self.bands])
            band = values.view(-1, *[1] * (sigma.ndim - 2))
        return (band * alpha / sigma.clamp_min(1e-12)).square().clamp_max(1)

    def mean_gate(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the channels' gates. alpha, sigma: (B, 1, ...).  =>  (B,)."""
        return self.gate(alpha, sigma).flatten(1).mean(1)

    def channel_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Each channel's share of the radius: sqrt(gate / largest gate), in [0, 1].

        alpha, sigma: (B, 1, ...).  =>  (B, 1 or C, ...); 1 where all gates are 0.
        """
        gate = self.gate(alpha, sigma)
        widest = gate.amax(1, keepdim=True)
        return torch.where(widest > 0, (gate / widest.clamp_min(1e-30)).sqrt(), 1.0)

    def std_ratio(self, tau: float) -> float:
        """What training with this penalty does to Gaussian data of standard deviation tau > 0:
        standard deviation of the samples, divided by tau. 1 is unchanged, 0 is removed.

        Closed-form integral of the probability-flow ODE dy/ds = (y - x0_hat) / s, with the
        minimiser x0_hat of the loss; for `normalized` it is 1 / sqrt(1 + weight). Directions that
        an attack prefers get a larger weight than this assumes; see forecast.py.

        Raises ValueError for several bands and for `paper`, whose weight depends on the radius.
        """
        if self.preset is Preset.PAPER:
            raise ValueError(
                "std_ratio is known for the presets `normalized` and `band`, got `paper`"
            )
        lam, t2 = self.weight, tau**2
        shrunk = t2 / (1 + lam)
        if self.preset is Preset.NORMALIZED:
            return (shrunk / t2) ** 0.5
        if len(self.bands) > 1:
            raise ValueError(
                f"std_ratio is known for one band, got {len(self.bands)}; use forecast_std"
            )
        # Above the band s^2 L = lam b^2 is constant: d ln y / ds = (s^2 + A) / (s (s^2 + C)).
        b2 = self.bands[0] ** 2
        a, c = lam * b2, lam * b2 + t2
        above = b2 ** (a / (2 * c)) * (b2 + c) ** (t2 / (2 * c))
        return above * (shrunk / (b2 + shrunk)) ** 0.5 / tau

    def __call__(self, w: Tensor, radius: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor: (B,). w: (B, ...); radius: (B, 1 or C, ...); alpha, sigma: (B, 1, ...)."""
        # A radius of exactly 0 means w = 0 and a residual of 0: the floors keep 0 / 0 at 0.
        if self.preset is Preset.PAPER:
            return self.weight * (3**0.5 / radius.clamp_min(1e-10)).flatten()
        mean_square = w.square().flatten(1).mean(1).clamp_min(1e-20)
        return self.weight * self.mean_gate(alpha, sigma) / mean_square
