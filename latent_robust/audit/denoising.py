"""What the audits by a model share: its estimate of a clean sample, and batches of one bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from latent_robust.core import NoiseProcess

Denoise = Callable[[Tensor, Tensor], Tensor]


def estimate_sample(
    process: NoiseProcess, denoise: Denoise, sample: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """The model's estimate of a sample (B, ...) to which noise of the time t, (B,), was added."""
    alpha, sigma = process(t, sample)
    noisy = alpha * sample + sigma * noise
    prediction = denoise(noisy, t)
    return process.parameterization.to_sample(noisy, prediction.float(), alpha, sigma)


def without_repeats(buckets: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(dict.fromkeys(bucket)) for bucket in buckets]


def in_batches(buckets: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Batches of at most `size` indices, each from one bucket."""
    return [list(bucket[i : i + size]) for bucket in buckets for i in range(0, len(bucket), size)]
