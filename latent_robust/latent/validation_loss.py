"""A denoising loss that can be compared between steps, runs and objectives: on pairs held out from
training, always at the same times and with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latent_robust.core import NoiseProcess, derive_generator

from .eval_mode import evaluation_mode


def split_held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """=>  indices to train on and indices to validate on, ascending.

    share: of the latter, in [0, 1). One pair at least is held out unless it is 0, and one at least
    is trained on.
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
    """The plain denoising loss, whatever the objective, as a mean over samples, times and values.

    denoise_factory: from a batch of `dataset` to `denoise(noisy, t, rows)`, which calls `network`.
    dataset: a LatentCache or Uncached; of a pair's latents the mean is used.
    =>  `validation/loss`, and one loss for each of `bins` bins of `process.times` with equally many
    times, named for their ends: `validation/t 0-250`. {} if there are no indices.

    times_per_bin: how often each sample is seen in each bin. Which times and noise these are
    depends on (seed, index) alone.
    """
    names, times = time_bins(process.times, bins)
    device = next(network.parameters()).device
    losses = []
    with evaluation_mode(network):
        for rows in _batches(dataset.buckets(), indices, batch_size):
            batch = dataset.__getitems__(rows)
            sample = batch["mean"].float()
            draws = [
                _times_and_noise(i, x.shape, times, times_per_bin, seed)
                for i, x in zip(rows, sample, strict=True)
            ]
            t, noise = (
                torch.stack(values, dim=1).to(device) for values in zip(*draws, strict=True)
            )
            losses.append(_losses(denoise_factory(batch), process, sample.to(device), t, noise))
    if not losses:
        return {}
    per_bin = torch.cat(losses, dim=1).unflatten(0, (bins, times_per_bin)).mean((1, 2)).tolist()
    means = zip(names, per_bin, strict=True)
    return {"validation/loss": sum(per_bin) / bins} | {f"validation/{k}": v for k, v in means}


def time_bins(times: Tensor, bins: int) -> tuple[list[str], list[Tensor]]:
    """=>  names such as "t 0-250", and the times of each bin, ascending."""
    chunks = list(times.cpu().sort().values.tensor_split(bins))
    # The steps 0..249 fill [0, 250); continuous times up to 250 fill (0, 250].
    last = 0 if times.is_floating_point() else 1
    ends = [0, *(round(chunk[-1].item()) + last for chunk in chunks)]
    return [f"t {low}-{high}" for low, high in pairwise(ends)], chunks


def _batches(
    buckets: Sequence[Sequence[int]], indices: Sequence[int], size: int
) -> Iterator[list[int]]:
    """Each index once, with others of its bucket."""
    wanted = set(indices)
    for bucket in buckets:
        members = [i for i in dict.fromkeys(bucket) if i in wanted]
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _times_and_noise(
    index: int, shape: torch.Size, times: list[Tensor], times_per_bin: int, seed: int
) -> tuple[Tensor, Tensor]:
    """=>  t (T,), bin after bin; noise (T, c, h, w), T = bins * times_per_bin."""
    generator = derive_generator(seed, "validation", index)
    draws = [
        chunk[torch.randint(len(chunk), (times_per_bin,), generator=generator)] for chunk in times
    ]
    t = torch.cat(draws)
    return t, torch.randn(len(t), *shape, generator=generator)


def _losses(
    denoise: Callable[..., Tensor], process: NoiseProcess, sample: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """sample: (B, c, h, w); t: (T, B); noise: (T, B, c, h, w).  =>  (T, B) float64, CPU."""
    everyone, losses = torch.arange(len(sample), device=sample.device), []
    for t_now, noise_now in zip(t, noise, strict=True):
        noisy = process.add_noise(sample, noise_now, t_now)
        target = process.parameterization.target(sample, noise_now, *process(t_now, sample))
        error = denoise(noisy, t_now, everyone) - target
        losses.append(error.square().flatten(1).mean(1))
    return torch.stack(losses).cpu().double()
