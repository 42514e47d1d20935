"""A denoising loss that is comparable between steps, runs and objectives.

It is computed on pairs held out from training, always at the same times and with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latent_robust.core import NoiseProcess, derive_generator

from .eval_mode import evaluation_mode


def split_held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """=>  indices to train on and held-out indices, both ascending.

    share: of the held-out pairs, in [0, 1). If it is above 0, at least one pair is held out. At
    least one pair is left for training.
    """
    held = min(max(1, round(share * count)), count - 1) if share else 0
    order = torch.randperm(count, generator=derive_generator(seed, "held-out")).tolist()
    return sorted(order[held:]), sorted(order[:held])


def validation_losses(
    denoise_factory: Callable[[dict[str, Any]], Callable[..., Tensor]],
    process: NoiseProcess,
    dataset: Any,
    indices: Sequence[int],
    *,
    network: nn.Module,
    seed: int,
    times_per_bin: int = 2,
    bins: int = 4,
    batch_size: int = 16,
) -> dict[str, float]:
    """The plain denoising loss for every objective, a mean over samples, times and latent values.

    denoise_factory: from a batch of `dataset` to `denoise(noisy, t, rows)`, which calls `network`;
    dataset: a LatentCache or Uncached, of which the means of the latents are used;
    times_per_bin: evaluations of each sample in each bin. Their times and noise depend only on
    (seed, index).
    =>  `validation/loss`, and one loss for each of `bins` bins of `process.times`. The bins have
    equally many times and are named by their ends: `validation/t 0-250`. {} without indices.
    """
    names, times = time_bins(process.times, bins)
    device = next(network.parameters()).device
    losses = []
    with evaluation_mode(network):
        for rows in _batches(dataset.buckets(), indices, batch_size):
            batch = dataset.__getitems__(rows)
            sample = batch["mean"].float()
            per_sample = [
                _times_and_noise(i, x.shape, times, times_per_bin, seed)
                for i, x in zip(rows, sample, strict=True)
            ]
            t, noise = (
                torch.stack(values, dim=1).to(device) for values in zip(*per_sample, strict=True)
            )
            losses.append(_losses(denoise_factory(batch), process, sample.to(device), t, noise))
    if not losses:
        return {}
    per_bin = torch.cat(losses, dim=1).unflatten(0, (bins, times_per_bin)).mean((1, 2)).tolist()
    means = zip(names, per_bin, strict=True)
    return {"validation/loss": sum(per_bin) / bins} | {f"validation/{k}": v for k, v in means}


def time_bins(times: Tensor, bins: int) -> tuple[list[str], list[Tensor]]:
    """=>  names of the bins, such as "t 0-250", and the times in each, ascending."""
    chunks = list(times.cpu().sort().values.tensor_split(bins))
    # The steps 0..249 cover [0, 250); continuous times up to 250 cover (0, 250].
    last = 0 if times.is_floating_point() else 1
    ends = [0, *(round(chunk[-1].item()) + last for chunk in chunks)]
    return [f"t {low}-{high}" for low, high in pairwise(ends)], chunks


def _batches(
    buckets: Sequence[Sequence[int]], indices: Sequence[int], size: int
) -> Iterator[list[int]]:
    """Batches of at most `size` indices that share a bucket, each index once."""
    selected = set(indices)
    for bucket in buckets:
        members = [i for i in dict.fromkeys(bucket) if i in selected]
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _times_and_noise(
    index: int, shape: torch.Size, times: list[Tensor], times_per_bin: int, seed: int
) -> tuple[Tensor, Tensor]:
    """=>  t (T,), bin after bin; noise (T, c, h, w), T = bins * times_per_bin."""
    generator = derive_generator(seed, "validation", index)
    chosen = [
        chunk[torch.randint(len(chunk), (times_per_bin,), generator=generator)] for chunk in times
    ]
    t = torch.cat(chosen)
    return t, torch.randn(len(t), *shape, generator=generator)


def _losses(
    denoise: Callable[..., Tensor], process: NoiseProcess, sample: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """sample: (B, c, h, w); t: (T, B); noise: (T, B, c, h, w).  =>  (T, B) float64, CPU."""
    rows, losses = torch.arange(len(sample), device=sample.device), []
    for t_now, noise_now in zip(t, noise, strict=True):
        noisy = process.add_noise(sample, noise_now, t_now)
        target = process.parameterization.target(sample, noise_now, *process(t_now, sample))
        error = denoise(noisy, t_now, rows) - target
        losses.append(error.square().flatten(1).mean(1))
    return torch.stack(losses).cpu().double()
