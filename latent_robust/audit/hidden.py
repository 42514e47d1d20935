"""Hidden features of a denoiser: what it sees in a noisy sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latent_robust.core import NoiseProcess, derive_generator

from .judge import View
from .scoring import BATCH, DenoiseBatch


def noisy_views(
    denoise_batch: DenoiseBatch, process: NoiseProcess, blocks: Sequence[nn.Module], seed: int
) -> View:
    """=>  view(noise level, number, indices): the features (n, D) of noisy samples.

    denoise_batch: as for `audit_samples`. blocks: of its network; see `hidden_features`.
    """

    @torch.no_grad()
    def view(noise_level: float, number: int, indices: Tensor) -> Tensor:
        found = []
        with hidden_features(blocks) as features:
            for rows in indices.split(BATCH):
                sample, denoise = denoise_batch(rows.tolist())
                stream = (seed, "view", number, int(rows[0]))
                generator = derive_generator(*stream, device=sample.device)
                noise = torch.randn(sample.shape, generator=generator, device=sample.device)
                t = process.time_of(noise_level).to(sample.device).expand(len(sample))
                denoise(process.add_noise(sample, noise, t), t)
                found.append(features())
        return torch.cat(found)

    return view


@contextmanager
def hidden_features(blocks: Sequence[nn.Module]) -> Iterator[Callable[[], Tensor]]:
    """Collect the outputs of `blocks` in a forward pass.

    Yields features() => (B, D), float32 on the CPU: mean and standard deviation over all places of
    each channel of each block, from the latest pass. blocks: their outputs are (B, C, ...).
    """
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            flat = output.detach().float().flatten(2)
            outputs[number] = torch.cat([flat.mean(2), flat.std(2, correction=0)], 1).cpu()

        return hook

    handles = [block.register_forward_hook(keep(n)) for n, block in enumerate(blocks)]
    try:
        yield lambda: torch.cat([outputs[number] for number in range(len(blocks))], 1)
    finally:
        for handle in handles:
            handle.remove()
