"""The training task in latent space: what a batch holds, and how the network denoises it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latent_robust.core import Parameterization

from .base.components import Components
from .config import LatentConfig
from .lora.adapters import adapted_parts


class EncodedPairs(Protocol):
    """The interface of LatentCache and Uncached."""

    empty_text: dict[str, Tensor]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]: ...

    def buckets(self) -> list[list[int]]: ...


class LatentTask:
    """The `Task` of latent_robust/training/loop.py for scaled latents (B, c, h, w).

    dataset: the encoded pairs; train_indices: of the pairs to train on; captions: by index, needed
    only if the text encoders are trained, because they must then encode them in every step;
    on_checkpoint: called with the network and the step.
    """

    def __init__(
        self,
        config: LatentConfig,
        components: Components,
        dataset: EncodedPairs,
        train_indices: Sequence[int],
        captions: Sequence[str] | None = None,
        on_checkpoint: Callable[[nn.Module, int], None] | None = None,
    ):
        self.config, self.components, self.dataset = config, components, dataset
        self.captions = captions if config.text_encoder else None
        self.network = WithTextEncoders(components) if config.text_encoder else components.network
        self.process = components.process
        kept = set(train_indices)
        buckets = ([i for i in bucket if i in kept] for bucket in dataset.buckets())
        self.buckets = [bucket for bucket in buckets if bucket]
        self._on_checkpoint = on_checkpoint

    def prepare(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Any]:
        """=>  a sample of the VAE's posterior, (B, c, h, w), and the conditions: text and sizes.

        A share `caption_dropout` of the captions is replaced by the empty one (classifier-free
        guidance, Ho & Salimans 2022); `caption_noise` perturbs the text conditions."""
        device = generator.device
        mean, std = (batch[key].to(device, non_blocking=True) for key in ("mean", "std"))
        noise = torch.randn(mean.shape, generator=generator, device=device)
        dropped = torch.rand(len(mean), generator=generator, device=device)
        dropped = dropped < self.config.caption_dropout
        if self.captions is not None:
            rows = zip(batch["index"].tolist(), dropped.tolist(), strict=True)
            text = [None if is_dropped else self.captions[index] for index, is_dropped in rows]
        else:
            text = {
                key: self._condition(value.to(device, non_blocking=True), key, dropped, generator)
                for key, value in batch["text"].items()
            }
        return mean + std * noise, (text, batch["size"].to(device, non_blocking=True))

    def _condition(self, value: Tensor, key: str, dropped: Tensor, generator) -> Tensor:
        """value: (B, ..., width), one of the text conditions; dropped: (B,), bool."""
        if self.config.caption_noise:
            # Conditional embedding perturbation, Gaussian form (Chen et al. 2024, "Slight
            # corruption in pre-training data makes better diffusion models"). The expected length
            # of the noise is caption_noise at every width.
            scale = self.config.caption_noise / value.shape[-1] ** 0.5
            noise = torch.randn(value.shape, generator=generator, device=value.device)
            value = value + (scale * noise).to(value.dtype)
        return _replace_dropped(value, self.dataset.empty_text[key], dropped)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """=>  (batch,) times: uniform, or logit-normal over the scheduler's (shifted) times, as in
        the training of SD 3 and FLUX (Esser et al. 2024)."""
        sampling, times = self.config.time_sampling, self.process.times
        flow = self.process.parameterization is Parameterization.FLOW
        if sampling == "uniform" or (sampling == "auto" and not flow):
            return self.process.draw_times(batch, generator)
        u = torch.randn(batch, generator=generator, device=generator.device).sigmoid()
        rank = (u * len(times)).long().clamp_max(len(times) - 1)
        return times.to(generator.device, non_blocking=True)[rank]

    def denoiser(self, network: nn.Module, conditions: Any) -> Callable[..., Tensor]:
        text, sizes = conditions
        if self.captions is None:
            return self.components.family.denoiser(network, text, sizes)
        return lambda noisy, t, rows: network(noisy, t, [text[row] for row in rows], sizes[rows])

    def auxiliary_loss(self, denoise: Callable, sample: Tensor, t: Tensor) -> None:
        return None

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        if self._on_checkpoint is not None:
            self._on_checkpoint(network, step)


class WithTextEncoders(nn.Module):
    """Denoiser and text encoders in one module, so that several processes synchronise both."""

    def __init__(self, components: Components):
        super().__init__()
        self.denoiser = components.network
        # T5 is left out: it has no adapters, and training mode would switch its dropout on.
        adapted = adapted_parts(components)
        encoders = {n: e for n, e in components.text_encoders.items() if n in adapted}
        self.text_encoders = nn.ModuleDict(encoders)
        self._family, self._pipeline = components.family, components.pipeline

    def forward(
        self, noisy: Tensor, t: Tensor, captions: list[str | None], sizes: Tensor
    ) -> Tensor:
        """captions: None where dropped. In SDXL a dropped caption differs from an empty one."""
        text = self._family.encode_text(self._pipeline, [caption or "" for caption in captions])
        if None in captions and not self._family.drops_to_empty_caption:
            empty = self._family.empty_text(self._pipeline)
            dropped = torch.tensor([caption is None for caption in captions], device=noisy.device)
            text = {
                key: _replace_dropped(value, empty[key], dropped) for key, value in text.items()
            }
        return self._family.denoiser(self.denoiser, text, sizes)(noisy, t)


def _replace_dropped(value: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """`value` (B, ...) with `empty` (1, ...) in the rows that are `dropped`, (B,), bool."""
    rows = dropped.view(-1, *[1] * (value.ndim - 1))
    return torch.where(rows, empty.to(value, non_blocking=True), value)
