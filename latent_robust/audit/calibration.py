"""Convert reconstruction errors to noise levels.

Noise of known strength is added to clean reference samples. A dirty sample gets the level at which
the references show the same error. Each channel has its own level, because an encoder passes on
more of an image's noise in some channels than in others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .levels import root_mean_square

# Clean samples to which known noise is added, and strengths of that noise. Twice the samples and
# half as many strengths again find the same levels on digits (median 0.377 instead of 0.373).
REFERENCE_SAMPLES = 32
GRID = 8
# Levels are measured at this multiple of the samples' own noise. There the auditor's prediction no
# longer depends on the noise of the individual sample.
CALIBRATION_RATIO = 2.0
# Noise counts as missing from the levels only above this share of its variance: the spectrum reads
# noise a little too high, and takes fine lines for noise.
MIN_MISSING_SHARE = 0.5
# Noise raises all scores alike. The scores count as similar if their lowest twentieth reaches this
# share of the median. Measured on digits: 0.77 with noise of 0.2 of the range in all images; 0.65
# with missing blocks, 0.54 with salt and pepper, 0.59 with clean images.
SIMILAR_RATIO = 0.7


def estimate_levels(
    errors: Tensor,
    noise_level: float,
    dirty_errors: Callable[[float], Tensor],
    reference_errors: Callable[[float, float], Tensor],
) -> tuple[Tensor, Tensor]:
    """Noise levels of the dirty samples, (D, C), and the gain of each channel, (C,).

    errors: (D, C), reconstruction errors of the dirty samples at `noise_level`, for a first
    estimate; dirty_errors(noise_level): the same at another noise level;
    reference_errors(noise_level, extra): (R, C), errors of the references, to which noise of
    standard deviation `extra` was added.

    The gain is a channel's level relative to the root mean square of all channels. The encoder
    determines it, so it is the same in all samples.
    """
    levels, _ = calibrate(partial(reference_errors, noise_level), errors)
    gain = torch.ones(errors.shape[1])
    median = levels.median().item()
    if median > 0:
        higher = CALIBRATION_RATIO * median
        levels, by_channel = calibrate(partial(reference_errors, higher), dirty_errors(higher))
        gain = by_channel.median(0).values
        gain = gain / root_mean_square(gain[None]).clamp_min(1e-6)
    return levels[:, None] * gain, gain


def calibrate(reference_errors: Callable[[float], Tensor], errors: Tensor) -> tuple[Tensor, Tensor]:
    """The noise that a reference needs to show `errors`: over all channels (N,), and each (N, C).

    reference_errors(extra): (R, C), errors of the references with added noise of standard deviation
    `extra`; errors: (N, C). The references' median error rises with the noise; the squared level is
    interpolated between its values.
    """
    grid = [reference_errors(0.0)]
    top = errors.max(0).values
    step = (top - grid[0].mean(0)).max().clamp_min(1e-8).sqrt().item() / GRID
    while (grid[-1].median(0).values < top).any() and len(grid) < 2 * GRID:
        grid.append(reference_errors(step * len(grid)))
    curves, squared = torch.stack(grid), np.square(step * np.arange(len(grid)))  # (G, R, C)

    def level(values: Tensor, curve: Tensor) -> Tensor:
        medians = curve.median(1).values.cummax(0).values  # (G,)
        return torch.from_numpy(np.interp(values.numpy(), medians.numpy(), squared)).sqrt().float()

    by_channel = [level(*pair) for pair in zip(errors.unbind(1), curves.unbind(2), strict=True)]
    return level(errors.mean(1), curves.mean(2)), torch.stack(by_channel, 1)


def are_similar(scores: Tensor, lowest: Tensor) -> bool:
    """scores: (N,); lowest: (), the score below which a sample counts as clean."""
    return bool(lowest > SIMILAR_RATIO * scores.median())


def add_missing_noise(levels: Tensor, noise_std: float, gain: Tensor) -> Tensor:
    """Add the references' own noise to levels (N, C) that explain too little of the noise.

    noise_std: root mean square of the noise in all samples; gain: (C,), from `estimate_levels`.
    Levels are relative to the references; if these are noisy themselves, all levels are too low.
    """
    missing = noise_std**2 - levels.square().mean().item()
    if missing <= MIN_MISSING_SHARE * noise_std**2:
        return levels
    return (levels.square() + missing * gain.square()).sqrt()
