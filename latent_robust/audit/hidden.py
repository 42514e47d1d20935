"""Hidden features of a denoiser: what it sees in a noisy sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latent_robust.core import NoiseProcess, derive_generator

from .judge import View
from .scoring import BATCH, DenoiseBatch


def feature_blocks(network: nn.Module) -> list[nn.Module]:
    """The residual blocks of a U-Net, or a transformer's feed-forward layers of image tokens."""
    from diffusers.models.attention import FeedForward
    from diffusers.models.resnet import ResnetBlock2D

    named = dict(network.named_modules())
    residual = [module for module in named.values() if isinstance(module, ResnetBlock2D)]
    if residual:
        return list(residual)
    own = {name: m for name, m in named.items() if isinstance(m, FeedForward)}
    return [module for name, module in own.items() if name.rpartition(".")[2] == "ff"]


def noisy_views(
    denoise_batch: DenoiseBatch,
    process: NoiseProcess,
    network: nn.Module,
    seed: int,
    bucket: Tensor | None = None,
    batch: int = BATCH,
) -> View:
    """=>  view(noise level, number, indices): the features (n, D) of noisy samples.

    denoise_batch: as for `audit_samples`, with this network. bucket: (N,), only samples of the same
    one may share a batch of at most `batch`; None: all may.
    """
    blocks = feature_blocks(network)

    @torch.no_grad()
    def view(noise_level: float, number: int, indices: Tensor) -> Tensor:
        found, order = [], []
        with hidden_features(blocks) as features:
            batches = _batches(indices, bucket, batch)
            label = f"judging features at noise level {noise_level:.2g}"
            for places in tqdm(batches, label, unit="batch", delay=2, leave=False):
                rows = indices[places]
                order.append(places)
                sample, denoise = denoise_batch(rows.tolist())
                stream = (seed, "view", f"{noise_level:g}", number, int(rows[0]))
                generator = derive_generator(*stream, device=sample.device)
                noise = torch.randn(sample.shape, generator=generator, device=sample.device)
                t = process.time_of(noise_level).to(sample.device).expand(len(sample))
                denoise(process.add_noise(sample, noise, t), t)
                found.append(features())
        return torch.cat(found)[torch.cat(order).argsort()]

    return view


def _batches(indices: Tensor, bucket: Tensor | None, batch: int) -> list[Tensor]:
    """Places in `indices`, in batches of one bucket each."""
    everything = torch.arange(len(indices))
    if bucket is None:
        return list(everything.split(batch))
    buckets = bucket[indices]
    return [
        places
        for number in buckets.unique()
        for places in everything[buckets == number].split(batch)
    ]


@contextmanager
def hidden_features(blocks: Sequence[nn.Module]) -> Iterator[Callable[[], Tensor]]:
    """Collect the outputs of `blocks` in a forward pass.

    Yields features() => (B, D), float32 on the CPU: mean and standard deviation over all places of
    each channel of each block, from the latest pass. blocks: their outputs are images (B, C, H, W)
    or tokens (B, T, C).
    """
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            values = output.detach().float()
            flat = values.flatten(2) if values.ndim == 4 else values.transpose(1, 2)
            outputs[number] = torch.cat([flat.mean(2), flat.std(2, correction=0)], 1).cpu()

        return hook

    handles = [block.register_forward_hook(keep(n)) for n, block in enumerate(blocks)]
    try:
        yield lambda: torch.cat([outputs[number] for number in range(len(blocks))], 1)
    finally:
        for handle in handles:
            handle.remove()
