"""The contamination's noise level, estimated blindly, in the units of scaled latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latent_robust.core import derive_generator
from latent_robust.data.levels import estimate_band

if TYPE_CHECKING:
    from .components import Components

# Flat pictures have an estimate of 0, which is no band, and at which a gain cannot be measured.
FLOOR = 1e-3


def latent_band(samples: Iterable[Tensor], components: Components) -> float:
    """What `estimate_band` is to pictures: where `band: auto` lets the regularizer act.

    samples: a few dozen pictures as they are trained on, (3, H, W) each, in [-1, 1] or beyond;
    their sizes may differ.  =>  > 0, standard deviation in units of scaled latents.

    Latents do not look like pictures: their own structure is as fine as noise, so that a wavelet
    estimate made there would take the one for the other. The pictures' level is therefore
    estimated in the pictures (median), and carried over by the encoder's gain: noise of that same
    level is added to each once more, and the root mean square of what this changes in the latents'
    mean, over all channels and places, is divided by the level. A VAE is not linear, hence the gain
    at this level and at these pictures. The VAE's own noise (the latents' std) is part of what is
    to be learned, and does not count.
    """
    samples = list(samples)
    level = float(np.median([estimate_band(sample[None]) for sample in samples]))
    level = max(level, FLOOR)
    return level * encoder_gain(samples, level, components).square().mean().sqrt().item()


@torch.no_grad()
def encoder_gain(samples: Sequence[Tensor], level: float, components: Components) -> Tensor:
    """Standard deviation of the latents' mean per standard deviation of noise in the pictures, of
    each channel, (C,): measured by adding noise of `level` to `samples` (3, H, W), in [-1, 1] or
    beyond."""
    powers = []
    for index, sample in enumerate(samples):
        noise = torch.randn(sample.shape, generator=derive_generator(0, "band", index))
        mean, _ = components.encode_pictures(torch.stack([sample, sample + level * noise]))
        powers.append((mean[1] - mean[0]).square().mean((1, 2)))
    return torch.stack(powers).mean(0).sqrt().cpu() / level
