"""Measure what noise in images becomes in their latents, and recommend a weight and a band.

The noise is not read off the latents; it is measured by adding known noise to the images."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latent_robust.audit.spectrum import (
    Recommendation,
    Spectrum,
    measure_spectrum,
    patch_covariance,
    patch_side,
    recommend_for,
)
from latent_robust.core import derive_generator
from latent_robust.errors import InputError

if TYPE_CHECKING:
    from .base.components import Components

# Raise it when a change of the code gives the same pairs another recommendation.
VERSION = 4

# Patches of latents are larger than those of images, with fewer patches per direction: the noise is
# not read off the smallest variances. For the demo a patch is the whole latent, and 256 latents are
# as good as 2,000; forecasts from parts of them rank weights and bands wrongly.
LARGEST_PATCH = 16  # latent pixels a side
PATCHES_PER_DIRECTION = 0.25
MAX_DIRECTIONS = 1024

# The share of a weight's effect that fine-tuning is assumed to reach, where 1 is the minimum of the
# loss. Measured for a thousand steps of LoRA: with this value the forecasts of eleven settings on
# the demo correlate best with the measured distances.
REACHED_SHARE = 0.6


def recommend_latents(
    samples: Tensor,
    components: Components,
    attack: str,
    *,
    left: Tensor | None = None,
    batch: int = 1,
    weight: float | None = None,
    band: float | Sequence[float] | None = None,
) -> Recommendation:
    """As `latent_robust.audit.spectrum.recommend`, for the latents of images.

    samples: some dozens of training samples, (N, 3, H, W), in [-1, 1] or beyond; attack: as
    `forecast_std` takes it; left: noise that a reduction left in the samples, as `measure_spectrum`
    takes it; batch: samples encoded at a time; weight, band: fixed values, None to
    choose them. InputError if the VAE overflows.
    """
    noise = measure_spectrum(samples, left).level
    parameterization = components.process.parameterization.value
    spectrum = latent_spectrum(samples, noise, components, batch, left)
    return recommend_for(spectrum, noise, attack, parameterization, weight=weight, band=band)


def latent_spectrum(
    samples: Tensor,
    noise: float,
    components: Components,
    batch: int = 1,
    left: Tensor | None = None,
) -> Spectrum:
    """samples, batch, left: as `recommend_latents` takes them; noise: its standard deviation in the
    samples.

    Noise in latents is not white: the encoder scales it differently in each channel and mixes the
    channels. It cannot be read off the latents, because their own structure is as fine as the
    noise. Therefore noise of the images' level is added to each image once more. The change of the
    latents' mean has the covariance of the noise in the latents. Its variance along each principal
    direction and its size in each channel are the result. The encoder is not linear, so the level
    and the images must be the real ones. The VAE's own noise (the latents' std) belongs to the
    training target and is not counted as noise.
    """
    means, stds, changes = _encode_twice(samples, noise, components, batch, left)
    largest = min(LARGEST_PATCH, isqrt(MAX_DIRECTIONS // means.shape[1]))
    side = patch_side(means.shape, largest, PATCHES_PER_DIRECTION)
    own = nn.functional.unfold(stds.square(), side, stride=side).double().mean((0, 2))
    variances, directions = torch.linalg.eigh(patch_covariance([means], side) + own.diag())
    added = (directions * (patch_covariance([changes], side) @ directions)).sum(0)
    by_channel = changes.square().mean((0, 2, 3)).sqrt()
    shares = directions.square().unflatten(0, (len(by_channel), -1)).sum(1).T
    tau, noise = variances.clamp_min(0).sqrt(), added.clamp_min(0).sqrt()
    return Spectrum(tau, noise, by_channel, shares, REACHED_SHARE)


def encoder_gain(samples: Sequence[Tensor], level: float, components: Components) -> Tensor:
    """How much the encoder scales noise in each channel, (C,): standard deviation in the latents'
    mean per standard deviation in the images. Measured by adding noise of standard deviation
    `level`.

    samples: (3, H, W) each, of one size, in [-1, 1] or beyond. InputError if the VAE overflows."""
    changes = _encode_twice(torch.stack(list(samples)), level, components, batch=1)[2]
    return changes.square().mean((0, 2, 3)).sqrt() / level


@torch.no_grad()
def _encode_twice(
    samples: Tensor,
    level: float,
    components: Components,
    batch: int,
    left: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """=>  mean and std of the latents, and the change of the mean when noise of standard deviation
    `level` is added to the samples, each (N, c, h, w). Of the noise, `left` is what it is known to
    be, and the rest is white."""
    white = level
    if left is not None:
        white = max(0.0, level**2 - float(left.square().mean())) ** 0.5
    means, stds, changes = [], [], []
    for indices in torch.arange(len(samples)).split(batch):
        chunk = samples[indices]
        noise = torch.stack(
            [
                torch.randn(chunk.shape[1:], generator=derive_generator(0, "band", index))
                for index in indices.tolist()
            ]
        )
        noise = white * noise
        if left is not None:
            noise = noise + left[indices % len(left)]
        mean, std = components.encode_images(chunk)
        noisy, _ = components.encode_images(chunk + noise)
        means.append(mean)
        stds.append(std)
        changes.append(noisy - mean)
    result = torch.cat(means), torch.cat(stds), torch.cat(changes)
    if not all(part.isfinite().all() for part in result):
        raise InputError("the VAE gives non-finite values; use bf16 or fp32")
    return result
