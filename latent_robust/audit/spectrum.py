"""Measure the white noise in images from their spectrum, and recommend a weight and a band.

White noise has the same variance in all directions; structure has most of its variance in a few. So
the smallest eigenvalues of the images' covariance are the noise (Chen, Zhu and Heng, ICCV 2015),
and subtracting it gives the clean spectrum. `forecast_std` predicts the spectrum after training
with each weight and band; the recommended pair comes nearest to the clean spectrum.

Only white noise is measured, and what a known reduction leaves of it (reduction.py). Blur,
recompression and watermarks count as structure, and so does noise that was resized or blurred with
its image before. Clipped noise reads too low where much of an image is black or white.
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

PATCH = 8  # side of a patch, in pixels; larger images are cut into patches
PATCHES_PER_IMAGE = 64  # at most
PATCHES_PER_DIRECTION = 3  # at least; the noise then reads 25 % low, with 12 patches 10 %

WEIGHTS = (0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0)
# Multiples of the noise. The forecast alone would prefer ever smaller bands with ever larger
# weights, but with a band below half of the noise, generated values leave the range of the data.
BANDS = (0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)

FORECAST_DIRECTIONS = 256  # at most

MAX_IMAGES = 2048
MAX_BYTES = 2**29  # of these images

# Noise below this, in units of [-1, 1], cannot be distinguished from fine structure: clean
# Fashion-MNIST reads 0.04.
CLEAN = 0.05
MIN_BAND = 1e-3
# The regularizer is recommended only if it is forecast to reduce the distance to clean images by at
# least this share.
MIN_IMPROVEMENT = 0.1


@dataclass(frozen=True)
class Spectrum:
    """Standard deviations of patches, and of the noise in them, along D principal directions.

    tau: (D,), standard deviation of the noisy patches; noise: (D,), that of their noise, root mean
    square over the samples, constant for white noise. If the noise differs between C channels:
    by_channel: (C,), noise in each channel; shares: (D, C), share of each direction in each
    channel, rows of sum 1. reached_share: training has the effect of this share of the weight, 1 if
    it reaches the minimum of the loss.
    """

    tau: Tensor
    noise: Tensor
    by_channel: Tensor | None = None
    shares: Tensor | None = None
    reached_share: float = 1.0

    @property
    def level(self) -> float:
        """The noise as one number: root mean square over the directions."""
        return float(self.noise.square().mean().sqrt())

    @property
    def clean(self) -> Tensor:
        """Standard deviations without the noise, (D,)."""
        return (self.tau.square() - self.noise.square()).clamp_min(0).sqrt()

    def band(self, times: float) -> tuple[float, ...]:
        """A multiple of the noise, one band or one per channel.

        Rounded to two digits, because the forecast is no more exact than that.
        """
        noise = [self.level] if self.by_channel is None else self.by_channel.tolist()
        return tuple(max(float(f"{times * level:.2g}"), MIN_BAND) for level in noise)

    def distance(
        self,
        weighting: Weighting | None,
        attack: str = "displacement",
        parameterization: str = "epsilon",
    ) -> float:
        """Forecast Fréchet distance between patches of generated and of clean images.

        weighting: of the regularizer in training, None for training without it; attack,
        parameterization: as for `forecast_std`.
        """
        if weighting is None:
            return float((self.tau - self.clean).square().sum())
        # The directions are sorted by variance, so evenly spaced ones stand for all.
        chosen = torch.tensor(evenly_spaced(len(self.tau), FORECAST_DIRECTIONS))
        shares = None if self.shares is None else self.shares[chosen]
        weighting = replace(weighting, weight=self.reached_share * weighting.weight)
        generated = forecast_std(self.tau[chosen], weighting, attack, parameterization, shares)
        total = (generated - self.clean[chosen]).square().sum()
        return float(total * len(self.tau) / len(chosen))


@dataclass(frozen=True)
class Recommendation:
    """A weight and a band, or the advice to leave the regularizer off.

    noise: standard deviation of the images' noise, in units of [-1, 1]; weighting: None if the
    images look clean or no setting is forecast to help; plain, robust: forecast Fréchet distances
    without and with the regularizer, between patches of what the spectrum describes.
    """

    noise: float
    spectrum: Spectrum
    weighting: Weighting | None
    plain: float
    robust: float

    @property
    def clean(self) -> bool:
        """Whether the images have no measurable noise."""
        return self.noise < CLEAN

    def settings(self) -> dict[str, float | list[float]]:
        """The options "weight" and "band".

        To leave the regularizer off, the weight is 0 and the band is the noise.
        """
        weighting = self.weighting or Weighting("band", 0.0, self.spectrum.band(1.0))
        bands = weighting.bands
        return {
            "weight": weighting.weight,
            "band": bands[0] if len(bands) == 1 else list(bands),
        }

    def summary(self) -> str:
        noise = f"noise: {self.noise:.3f} (root mean square; images are in [-1, 1])"
        if self.clean:
            return (
                f"{noise}\nThe images look clean: leave the regularizer off. This test does not "
                "detect blur, recompression, watermarks, or noise in images that were made smaller "
                "before."
            )
        if self.weighting is None:
            return f"{noise}\nno weight and band are forecast to help: leave the regularizer off"
        return (
            f"{noise}\nrecommended: {self.weighting}\n"
            "forecast of the Fréchet distance to clean images: "
            f"{self.plain:.3g} without, {self.robust:.3g} with the regularizer"
        )

    def facts(self) -> dict[str, Any]:
        """The recommendation as JSON data; without one, weight 0 and no band."""
        weighting = self.weighting
        return {
            "noise": self.noise,
            "weight": 0.0 if weighting is None else weighting.weight,
            "band": None if weighting is None else self.settings()["band"],
            "forecast": {"plain": self.plain, "robust": self.robust},
        }


def recommend(
    samples: Tensor,
    attack: str = "displacement",
    parameterization: str = "epsilon",
    *,
    left: Tensor | None = None,
    weight: float | None = None,
    band: float | Sequence[float] | None = None,
) -> Recommendation:
    """The weight and band with the smallest forecast distance to clean images.

    samples: (N, C, H, W) in [-1, 1]; attack, parameterization: as for `forecast_std`; left: as for
    `measure_spectrum`; weight, band: fixed by the user, None to search.
    """
    spectrum = measure_spectrum(samples, left)
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
    """As `recommend`, for the spectrum of images or latents. noise: that of the images, in units of
    [-1, 1], which decides whether they look clean."""
    plain = spectrum.distance(None)
    if noise < CLEAN:
        return Recommendation(noise, spectrum, None, plain, plain)
    weights = WEIGHTS if weight is None else (weight,)
    bands = [spectrum.band(times) for times in BANDS] if band is None else [band]
    candidates = [Weighting("band", *pair) for pair in product(weights, bands)]
    distances = [spectrum.distance(w, attack, parameterization) for w in candidates]
    robust = min(distances)
    best = candidates[distances.index(robust)]
    if robust < (1 - MIN_IMPROVEMENT) * plain:
        return Recommendation(noise, spectrum, best, plain, robust)
    return Recommendation(noise, spectrum, None, plain, plain)


def images_to_measure(size: int, channels: int) -> int:
    """At most MAX_IMAGES images and MAX_BYTES bytes, at least 32 images. size: side in pixels."""
    return max(32, min(MAX_IMAGES, MAX_BYTES // (4 * channels * size**2)))


def measure_spectrum(samples: Tensor, left: Tensor | None = None) -> Spectrum:
    """Spectrum of the samples' patches, and the noise in it.

    samples: (N, C, H, W). left: noise that a reduction left in them, (M, C, H, W), as
    `reduced_noise` gives it; what is white is measured in the rest.

    A covariance needs PATCHES_PER_DIRECTION times as many patches as it has directions, so a few
    small images are cut into smaller patches.
    """
    if all(torch.equal(samples[:, :1], samples[:, c : c + 1]) for c in range(1, samples.shape[1])):
        samples = samples[:, :1]  # gray: equal noise in all channels would not be white
        left = left if left is None else left[:, :1]
    side = patch_side(samples.shape)
    covariance = patch_covariance(samples.split(64), side)
    if left is None:
        variances = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        noise = noise_variance(variances) ** 0.5
        return Spectrum(variances.sqrt(), torch.full_like(variances, noise))
    known = patch_covariance(left.split(64), side)
    rest = torch.linalg.eigvalsh(covariance - known).flip(0).clamp_min(0)
    variances, directions = torch.linalg.eigh(covariance)
    along = (directions * (known @ directions)).sum(0) + noise_variance(rest)
    # Not more than there is: the noise that was measured may be a little too high.
    return Spectrum(*(v.clamp_min(0).sqrt().flip(0) for v in (variances, along.minimum(variances))))


def patch_covariance(chunks: Iterable[Tensor], side: int) -> Tensor:
    """Covariance of the values of a patch: float64 (D, D) with D = C * side**2.

    chunks: (B, C, H, W); side: of a patch, in pixels.
    """
    total = outer = torch.zeros((), dtype=torch.float64)
    count = 0
    for chunk in chunks:
        patches = nn.functional.unfold(chunk.float(), side, stride=side)  # (B, D, L)
        chosen = evenly_spaced(patches.shape[2], PATCHES_PER_IMAGE)
        rows = patches[:, :, chosen].transpose(1, 2).flatten(0, 1).double()
        total, outer, count = total + rows.sum(0), outer + rows.T @ rows, count + len(rows)
    mean = total / count
    return outer / count - mean[:, None] * mean


def patch_side(
    shape: tuple[int, ...], largest: int = PATCH, per_direction: float = PATCHES_PER_DIRECTION
) -> int:
    """Side of a patch in pixels: `largest`, halved until there are enough patches.

    shape: (N, C, H, W); per_direction: patches needed for each of the C * side**2 directions.
    """
    count, channels, height, width = shape
    side = min(largest, height, width)
    while side > 2:
        patches = count * min((height // side) * (width // side), PATCHES_PER_IMAGE)
        if patches >= per_direction * channels * side**2:
            break
        side //= 2
    return side


def noise_variance(variances: Tensor) -> float:
    """Variance of the white noise in a covariance. variances: (D,), its eigenvalues, descending.

    The noise is the mean of the last eigenvalues, as many as possible whose mean is no larger than
    their median. Structure among them would raise the mean.
    """
    for first in range(len(variances)):
        rest = variances[first:]
        if rest.mean() <= rest.quantile(0.5):
            return float(rest.mean())
    return float(variances[-1])
