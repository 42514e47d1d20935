"""A weight and a band for these images, from their own spectrum; or that they look clean.

White noise has the same variance in all directions, structure has most of its own in few. So the
smallest eigenvalues of the images' covariance are the noise (Chen, Zhu and Heng, ICCV 2015), and
what lies above them is the spectrum that the images would have without it. `forecast_std`
says what each weight and band would make of the noisy spectrum; the recommended ones come nearest
to the clean one. Nothing but white noise is seen: blur, recompression and watermarks are structure,
and noise that was scaled up or blurred with its image is no longer white. Clipped at black and
white it reads low, where much of an image is one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from latent_robust.core import Weighting, forecast_std
from latent_robust.subset import evenly_spaced

PATCH = 8  # pixels a side; larger images are cut up
PATCHES = 64  # of an image, at most
ENOUGH_PATCHES = 3  # for each direction: the noise then reads a quarter low, with 12 a tenth

WEIGHTS = (0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0)
# Times the noise. The forecast would have less and less band for more and more weight; but below
# half of the noise trained networks leave the data's range (RESULTS.md).
BANDS = (0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)

FORECAST = 256  # directions, at most

ENOUGH = 2048  # images
LOOKED_AT = 2**29  # bytes of them, at most

# Less noise than this, in units of [-1, 1], cannot be told from fine drawing: clean Fashion-MNIST
# reads 0.04.
CLEAN = 0.05
LEAST_BAND = 1e-3
# What the regularizer must promise to take off the distance to clean images.
WORTH = 0.1


@dataclass(frozen=True)
class Spectrum:
    """tau: (D,), standard deviations of patches along their principal directions; noise: (D,), that
    of the noise in them, root mean square over the samples: the same everywhere if it is white.
    Where it differs between channels: by_channel (C,), the noise in each, and shares (D, C), how
    much of each direction lies in each. reached: the share of a weight whose effect training
    reaches, 1 for a minimum."""

    tau: Tensor
    noise: Tensor
    by_channel: Tensor | None = None
    shares: Tensor | None = None
    reached: float = 1.0

    @property
    def level(self) -> float:
        """The noise as one number, root mean square over the directions."""
        return float(self.noise.square().mean().sqrt())

    @property
    def clean(self) -> Tensor:
        """tau without the noise."""
        return (self.tau.square() - self.noise.square()).clamp_min(0).sqrt()

    def band(self, times: float) -> tuple[float, ...]:
        """So many times the noise, one for each channel if it differs between them, to two digits:
        more of them would only say how exact a forecast is not."""
        noise = [self.level] if self.by_channel is None else self.by_channel.tolist()
        return tuple(max(float(f"{times * level:.2g}"), LEAST_BAND) for level in noise)

    def distance(self, weighting: Weighting | None, *kind: str) -> float:
        """Forecast of the Fréchet distance between patches of what is sampled, after training with
        this weighting (None: without the regularizer), and clean ones. kind: attack and
        parameterization, as `forecast_std` takes them."""
        if weighting is None:
            return float((self.tau - self.clean).square().sum())
        few = torch.tensor(
            evenly_spaced(len(self.tau), FORECAST)
        )  # they are in order: as good as all
        shares = None if self.shares is None else self.shares[few]
        weighting = replace(weighting, weight=self.reached * weighting.weight)
        drawn = forecast_std(self.tau[few], weighting, *kind, shares=shares)
        total = (drawn - self.clean[few]).square().sum()
        return float(total * len(self.tau) / len(few))


@dataclass(frozen=True)
class Recommendation:
    """noise: of the images; weighting: None where they look clean, or where nothing that may be
    chosen helps. plain, robust: forecast distances, in what the spectrum is of."""

    noise: float
    spectrum: Spectrum
    weighting: Weighting | None
    plain: float
    robust: float

    @property
    def clean(self) -> bool:
        return self.noise < CLEAN

    def settings(self) -> dict[str, float | list[float]]:
        """=>  "weight" and "band", 0 and what would be the band if there were a weight where the
        regularizer is better left off."""
        weighting = self.weighting or Weighting("band", 0.0, self.spectrum.band(1.0))
        band = weighting.band
        return {
            "weight": weighting.weight,
            "band": list(band) if isinstance(band, tuple) else band,
        }

    def summary(self) -> str:
        noise = f"noise: {self.noise:.3f} (root mean square; images are in [-1, 1])"
        if self.clean:
            return (
                f"{noise}\nThe images look clean: leave the regularizer off. Not seen in "
                "this way: blur, recompression, watermarks, noise scaled up with its image."
            )
        if self.weighting is None:
            return f"{noise}\nno weight and band that may be chosen are forecast to help"
        return (
            f"{noise}\nrecommended: {self.weighting}\n"
            "forecast of the Fréchet distance to what is clean: "
            f"{self.plain:.3g} without, {self.robust:.3g} with the regularizer"
        )

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        off = self.weighting is None
        return {
            "noise": self.noise,
            "weight": 0.0 if off else self.weighting.weight,
            "band": None if off else self.settings()["band"],
            "forecast": {"plain": self.plain, "robust": self.robust},
        }


def recommend(
    samples: Tensor,
    attack: str = "displacement",
    parameterization: str = "epsilon",
    *,
    weight: float | None = None,
    band: float | Sequence[float] | None = None,
) -> Recommendation:
    """samples: (N, C, H, W), in [-1, 1]; attack, parameterization: as `forecast_std` takes them;
    weight, band: what is given already."""
    spectrum = measure_spectrum(samples)
    kind = (attack, parameterization)
    return recommend_for(spectrum, spectrum.level, *kind, weight=weight, band=band)


def recommend_for(
    spectrum: Spectrum,
    noise: float,
    attack: str,
    parameterization: str,
    *,
    weight: float | None = None,
    band: float | Sequence[float] | None = None,
) -> Recommendation:
    """As `recommend`, for a spectrum of anything. noise: of the images."""
    plain = spectrum.distance(None)
    if noise < CLEAN:
        return Recommendation(noise, spectrum, None, plain, plain)
    weights = WEIGHTS if weight is None else (weight,)
    bands = [spectrum.band(times) for times in BANDS] if band is None else [band]
    tried = [Weighting("band", *pair) for pair in product(weights, bands)]
    distances = [spectrum.distance(w, attack, parameterization) for w in tried]
    robust = min(distances)
    best = tried[distances.index(robust)]
    if robust < (1 - WORTH) * plain:
        return Recommendation(noise, spectrum, best, plain, robust)
    return Recommendation(noise, spectrum, None, plain, plain)


def images_to_measure(size: int, channels: int) -> int:
    """How many are enough, and fit into LOOKED_AT bytes."""
    return max(32, min(ENOUGH, LOOKED_AT // (4 * channels * size**2)))


def measure_spectrum(samples: Tensor) -> Spectrum:
    """samples: (N, C, H, W). Of few small images smaller patches are taken: a covariance needs
    ENOUGH_PATCHES times as many patches as it has directions."""
    if all(torch.equal(samples[:, :1], samples[:, c : c + 1]) for c in range(1, samples.shape[1])):
        samples = samples[:, :1]  # gray: the same noise in all channels would not look white
    covariance = patch_covariance(samples.split(64), patch_side(samples.shape))
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    noise = noise_variance(variances) ** 0.5
    return Spectrum(variances.sqrt(), torch.full_like(variances, noise))


def patch_covariance(chunks: Iterable[Tensor], side: int) -> Tensor:
    """chunks: (B, C, H, W).  =>  (D, D), float64, of the values of a patch, D = C * side**2."""
    total, outer, count = 0.0, 0.0, 0
    for chunk in chunks:
        patches = nn.functional.unfold(chunk.float(), side, stride=side)  # (B, D, L)
        looked_at = evenly_spaced(patches.shape[2], PATCHES)
        rows = patches[:, :, looked_at].transpose(1, 2).flatten(0, 1).double()
        total, outer, count = total + rows.sum(0), outer + rows.T @ rows, count + len(rows)
    mean = total / count
    return outer / count - mean[:, None] * mean


def patch_side(
    shape: tuple[int, ...], largest: int = PATCH, per_direction: float = ENOUGH_PATCHES
) -> int:
    """shape: (N, C, H, W); per_direction: how many patches there must be for each of the C * side^2
    directions of a patch.  =>  `largest`, or a half of it, ..., as far as the samples go."""
    count, channels, height, width = shape
    side = min(largest, height, width)
    while side > 2:
        patches = count * min((height // side) * (width // side), PATCHES)
        if patches >= per_direction * channels * side**2:
            break
        side //= 2
    return side


def noise_variance(variances: Tensor) -> float:
    """variances: (D,), descending eigenvalues of a covariance. The noise has the last of them: as
    many as have a mean no larger than their median, since what structure has left in them would
    raise the mean."""
    for first in range(len(variances)):
        rest = variances[first:]
        if rest.mean() <= rest.quantile(0.5):
            return float(rest.mean())
    return float(variances[-1])
