"""Audit a dataset with a model that was trained on it: which samples are noisy, and how noisy?

The auditor denoises each sample y, to which noise of level s = sigma / alpha was added:

    score = mean (y - x0_hat)^2          over elements and over several draws of the noise

A model can only reproduce what its training images share. Noise is not shared, so it remains in the
score, even if the model was trained on that very sample.

- If the log scores are bimodal, Otsu's threshold separates clean samples from noisy ones.
- If they are unimodal, only the lowest twentieth counts as clean.
- If they are unimodal and the images have no measurable white noise, every sample is clean.
- If they are unimodal and similar, and the estimated levels explain less than half of the measured
  noise, the reference samples are noisy too: no sample is clean.
- If the estimated levels are far above the measured noise, the auditor takes something else for
  noise, sharp images among blurred ones, say. Then it cannot tell, and no sample counts as noisy.

`calibration.py` converts the scores of noisy samples to noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor
from tqdm import tqdm

from latent_robust.core import NoiseProcess, derive_generator
from latent_robust.errors import InputError
from latent_robust.subset import evenly_spaced

from .bimodality import is_bimodal, otsu
from .calibration import REFERENCE_SAMPLES, add_missing_noise, are_similar, estimate_levels
from .denoising import Denoise, estimate_sample, in_batches, without_repeats
from .reduction import ReducedImages, to_measure
from .result import Audit
from .spectrum import CLEAN, measure_spectrum

# Noise levels s at which scores are tried, in units of the samples. The one with the largest
# separation is used.
NOISE_LEVELS = (0.1, 0.2, 0.4, 0.8)
PROBE_SAMPLES = 128  # number of samples for this choice
# Values of each channel behind a score: small samples get several draws of the noise. For digits of
# 8 x 8, four draws separate mixed levels nearly as well as sixteen; one draw is worse.
VALUES_PER_SCORE = 256
BATCH = 64
MIN_SCORE = 1e-8  # a score of 0 has no logarithm
CLEANEST_SHARE = 0.05  # samples that count as clean if the scores are unimodal
# Levels may exceed the noise that the spectrum shows by this factor. Measured on digits: 0.92 with
# noise, 0.76 with missing blocks; 1.68 with JPEG, where the scores are upside down.
MOST_EXCESS = 1.4

DenoiseBatch = Callable[[Sequence[int]], tuple[Tensor, Denoise]]


@torch.no_grad()
def audit_samples(
    denoise_batch: DenoiseBatch,
    process: NoiseProcess,
    buckets: Sequence[Sequence[int]],
    *,
    noise_std: float | None = None,
    looks_clean: bool = False,
    batch: int = BATCH,
    seed: int = 0,
) -> Audit:
    """Score all samples and estimate the noise level of those that are noisy.

    denoise_batch(indices): samples (B, C, ...) and denoise(noisy, t) => prediction, with the
    samples' conditions; buckets: the indices 0 .. N - 1, where only indices of the same bucket may
    share a batch, and a repeated index counts once; noise_std: root mean square of the white noise
    in all samples, as `measure_spectrum` measures it, None if it is unknown; looks_clean: whether
    that is too little to be called noise; batch: largest number of samples in a call.

    Cost: one pass over all samples and one over the noisy ones (several if a channel has fewer than
    VALUES_PER_SCORE values), and some passes over PROBE_SAMPLES and REFERENCE_SAMPLES samples.

    Raises InputError if a prediction is not finite.
    """
    unique = without_repeats(buckets)
    count = sum(map(len, unique))

    def errors_of(selected: Tensor, noise_level: float, extra: float = 0.0) -> Tensor:
        """Errors (S, C) in the order of the indices. selected: (N,), bool."""
        kept = [[index for index in bucket if selected[index]] for bucket in unique]
        batches = in_batches(kept, batch)
        what = "calibrating" if extra else "auditing"
        label = f"{what} at noise level {noise_level:.2g}"
        errors = [
            _reconstruction_errors(denoise_batch, process, indices, noise_level, extra, seed)
            for indices in tqdm(batches, label, unit="batch", delay=2, leave=False)
        ]
        order = torch.tensor([index for indices in batches for index in indices]).argsort()
        return torch.cat(errors)[order]

    probe = _mask(evenly_spaced(count, PROBE_SAMPLES), count)
    noise_level = max(NOISE_LEVELS, key=lambda s: otsu(errors_of(probe, s).mean(1).log())[1])
    errors = errors_of(torch.ones(count, dtype=torch.bool), noise_level)
    scores = errors.mean(1)
    threshold, separation = otsu(scores.log())
    bimodal = is_bimodal(separation, count)
    lowest = scores.quantile(CLEANEST_SHARE)
    clean = scores.log() <= threshold if bimodal else scores <= lowest
    levels = torch.zeros(errors.shape)
    if clean.all() or (looks_clean and not bimodal):
        return Audit(scores, levels, noise_level, separation)

    clean_indices = clean.nonzero().flatten()
    chosen = clean_indices[evenly_spaced(len(clean_indices), REFERENCE_SAMPLES)]
    levels[~clean], gain = estimate_levels(
        errors[~clean],
        noise_level,
        dirty_errors=partial(errors_of, ~clean),
        reference_errors=partial(errors_of, _mask(chosen, count)),
    )
    if noise_std is not None:
        if not bimodal and are_similar(scores, lowest):
            levels = add_missing_noise(levels, noise_std, gain)
        if levels.square().mean().sqrt() > MOST_EXCESS * noise_std:
            nothing = torch.zeros_like(levels)
            return Audit(scores, nothing, noise_level, separation, told=False)
    return Audit(scores, levels, noise_level, separation)


def audit_images(
    denoise_batch: DenoiseBatch, process: NoiseProcess, images: ReducedImages, *, seed: int = 0
) -> Audit:
    """`audit_samples` for images, whose white noise is measured from their spectrum first."""
    samples, left = to_measure(images)
    level = measure_spectrum(samples, left).level
    return audit_samples(
        denoise_batch,
        process,
        [range(len(images))],
        noise_std=level,
        looks_clean=level < CLEAN,
        seed=seed,
    )


def _reconstruction_errors(
    denoise_batch: DenoiseBatch,
    process: NoiseProcess,
    indices: Sequence[int],
    noise_level: float,
    extra: float,
    seed: int,
) -> Tensor:
    """Mean (y - x0_hat)^2 of each channel, (B, C), float64. A score is the mean over the channels.

    extra: standard deviation of the noise that is added to the samples themselves.
    """
    sample, denoise = denoise_batch(indices)
    t = process.time_of(noise_level).to(sample.device).expand(len(sample))
    total = torch.zeros(sample.shape[:2], dtype=torch.float64)
    generator = derive_generator(seed, "audit", indices[0], device=sample.device)
    draws = ceil(VALUES_PER_SCORE / sample[0, 0].numel())
    for _ in range(draws):
        added, noise = torch.randn(2, *sample.shape, generator=generator, device=sample.device)
        dirty = sample + extra * added
        estimate = estimate_sample(process, denoise, dirty, noise, t)
        total += (dirty - estimate).square().flatten(2).cpu().double().mean(2)
    if not total.isfinite().all():
        raise InputError(
            f"the auditor's predictions are not finite at noise level {noise_level:.2g}: the model "
            "has diverged; audit with another one"
        )
    return (total / draws).clamp_min(MIN_SCORE)


def _mask(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """(count,), bool: true at `indices`."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[indices] = True
    return mask
