"""What noise in images is in their latents, and a weight and a band for these."""

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

# To be raised when the same pairs get another recommendation from then on.
VERSION = 3

# Patches of latents are larger than those of images, and fewer to a direction: the noise is not
# read off their smallest variances. It takes the whole of the demo's latents, of which 256 are as
# good as 2,000; what is forecast of their parts ranks weights and bands wrongly.
LARGEST = 16
PER_DIRECTION = 0.25
DIRECTIONS = 1024  # at most

# What fine-tuning is taken to reach of the minimum's weight, measured for a thousand steps of LoRA:
# with this the forecast of eleven settings on the demo correlates best with the distances that they
# came to (RESULTS.md, A weight and a band without a search).
REACHED = 0.6


def recommend_latents(
    samples: Tensor,
    components: Components,
    attack: str,
    *,
    batch: int = 1,
    weight: float | None = None,
    band: float | Sequence[float] | None = None,
) -> Recommendation:
    """As `latent_robust.data.recommend`, for the latents of images.

    samples: some dozens as they are trained on, (N, 3, H, W) in [-1, 1] or beyond; attack: as
    `forecast_std` takes it; batch: how many are encoded at a time; weight, band: what is
    given already.
    """
    noise = measure_spectrum(samples).level
    parameterization = components.process.parameterization.value
    spectrum = latent_spectrum(samples, noise, components, batch)
    return recommend_for(spectrum, noise, attack, parameterization, weight=weight, band=band)


def latent_spectrum(
    samples: Tensor, noise: float, components: Components, batch: int = 1
) -> Spectrum:
    """samples, batch: as `recommend_latents` takes them; noise: standard deviation of theirs.

    In latents noise is not white: an encoder gives it another size in each channel, and mixes
    them. So it is not read off the latents, whose own structure is as fine. Noise of the images'
    level is added to each image once more, and what this changes in the mean of its latents has
    the covariance that their noise has; along each principal direction of the latents it has its
    share, and in each channel its size. An encoder is not linear, hence the level and these
    images. The VAE's own noise (the latents' std) is part of what is to be learned, and does not
    count.
    """
    means, stds, changes = _encode_twice(samples, noise, components, batch)
    largest = min(LARGEST, isqrt(DIRECTIONS // means.shape[1]))
    side = patch_side(means.shape, largest, PER_DIRECTION)
    own = nn.functional.unfold(stds.square(), side, stride=side).double().mean((0, 2))
    variances, directions = torch.linalg.eigh(patch_covariance([means], side) + own.diag())
    dirt = (directions * (patch_covariance([changes], side) @ directions)).sum(0)
    by_channel = changes.square().mean((0, 2, 3)).sqrt()
    shares = directions.square().unflatten(0, (len(by_channel), -1)).sum(1).T
    tau, noise = variances.clamp_min(0).sqrt(), dirt.clamp_min(0).sqrt()
    return Spectrum(tau, noise, by_channel, shares, REACHED)


def encoder_gain(samples: Sequence[Tensor], level: float, components: Components) -> Tensor:
    """Standard deviation of the latents' mean per standard deviation of noise in the images, of
    each channel, (C,): measured by adding noise of `level` to `samples` (3, H, W), of one size, in
    [-1, 1] or beyond."""
    changes = _encode_twice(torch.stack(list(samples)), level, components, batch=1)[2]
    return changes.square().mean((0, 2, 3)).sqrt() / level


@torch.no_grad()
def _encode_twice(
    samples: Tensor, level: float, components: Components, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """=>  mean and std of the latents, and by how much noise of `level` moves the mean, each
    (N, c, h, w)."""
    means, stds, changes = [], [], []
    for indices in torch.arange(len(samples)).split(batch):
        chunk = samples[indices]
        noise = torch.stack(
            [
                torch.randn(chunk.shape[1:], generator=derive_generator(0, "band", index))
                for index in indices.tolist()
            ]
        )
        mean, std = components.encode_images(chunk)
        noisy, _ = components.encode_images(chunk + level * noise)
        means.append(mean)
        stds.append(std)
        changes.append(noisy - mean)
    found = torch.cat(means), torch.cat(stds), torch.cat(changes)
    if not all(part.isfinite().all() for part in found):
        raise InputError("the VAE gives non-finite values; use bf16 or fp32")
    return found
