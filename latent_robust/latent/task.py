"""The training task in latent space: what a batch holds, and how the network denoises it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latent_robust.core import Levels, Parameterization

from .base.components import Components
from .base.families import Conditions
from .cache.encoding import with_tag
from .config import LatentConfig
from .lora.adapters import adapted_parts


class EncodedPairs(Protocol):
    """The interface of LatentCache and Uncached."""

    empty_text: Conditions

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]: ...

    def buckets(self) -> list[list[int]]: ...


class BatchConditions(NamedTuple):
    """The conditions of B samples.

    text: {name: (B, ...)}; or, if the text encoders are trained, B captions, None where dropped.
    sizes: (B, 6), see `Family.time_ids`. With `--tag-dirt` also tagged, as `text` but with the
    words for dirt, and the samples' levels."""

    text: Conditions | list[str | None]
    sizes: Tensor
    tagged: Conditions | list[str | None] | None = None
    levels: Levels | None = None


class LatentTask:
    """The `Task` of latent_robust/training/loop.py for scaled latents (B, c, h, w).

    dataset: the encoded pairs; train_indices: of the pairs to train on; captions: by index, needed
    only if the text encoders are trained, because they must then encode them in every step;
    on_checkpoint: called with the network and the step; levels, tags: of each pair, with
    `--tag-dirt`: its caption ends with the tag where the sample may not be used as a clean one;
    doubtful: (N,), bool, captions that are always left out.
    """

    def __init__(
        self,
        config: LatentConfig,
        components: Components,
        dataset: EncodedPairs,
        train_indices: Sequence[int],
        captions: Sequence[str] | None = None,
        on_checkpoint: Callable[[nn.Module, int], None] | None = None,
        levels: Levels | None = None,
        tags: Sequence[str] | None = None,
        doubtful: Tensor | None = None,
    ):
        self.config, self.components, self.dataset = config, components, dataset
        self.captions = captions if config.text_encoder else None
        self.network = WithTextEncoders(components) if config.text_encoder else components.network
        self.process = components.process
        kept = set(train_indices)
        buckets = ([i for i in bucket if i in kept] for bucket in dataset.buckets())
        self.buckets = [bucket for bucket in buckets if bucket]
        self._on_checkpoint = on_checkpoint
        self._levels, self._tags, self._doubtful = levels, tags or [], doubtful

    def prepare(
        self, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, BatchConditions]:
        """=>  a sample of the VAE's posterior, (B, c, h, w), and its conditions.

        A share `caption_dropout` of the captions is replaced by the empty one (classifier-free
        guidance, Ho & Salimans 2022), a tagged one by the tag; `caption_noise` perturbs the text
        conditions."""
        device = generator.device
        mean, std = (batch[key].to(device, non_blocking=True) for key in ("mean", "std"))
        noise = torch.randn(mean.shape, generator=generator, device=device)
        dropped = torch.rand(len(mean), generator=generator, device=device)
        dropped = dropped < self.config.caption_dropout
        if self._doubtful is not None:
            dropped |= self._doubtful[batch["index"]].to(device, non_blocking=True)
        sizes = batch["size"].to(device, non_blocking=True)
        if self.captions is not None:
            rows = zip(batch["index"].tolist(), dropped.tolist(), strict=True)
            text = [None if is_dropped else self.captions[index] for index, is_dropped in rows]
        else:
            text = self._conditions(batch["text"], self.dataset.empty_text, dropped, generator)
        if self._levels is None:
            return mean + std * noise, BatchConditions(text, sizes)
        if self.captions is not None:
            words = [self._tags[index] for index in batch["index"].tolist()]
            tagged = [
                with_tag(caption or "", tag) for caption, tag in zip(text, words, strict=True)
            ]
        else:
            tagged = self._conditions(batch["tagged"], batch["tag"], dropped, generator)
        levels = self._levels[batch["index"]].to(device)
        return mean + std * noise, BatchConditions(text, sizes, tagged, levels)

    def _conditions(
        self, text: Conditions, without_caption: Conditions, dropped: Tensor, generator
    ) -> Conditions:
        """Text conditions (B, ...) on the device. dropped: (B,), bool, which rows are replaced by
        `without_caption`, (1, ...) or (B, ...)."""
        return {
            key: _replace_dropped(
                self._perturbed(value.to(dropped.device, non_blocking=True), generator),
                without_caption[key],
                dropped,
            )
            for key, value in text.items()
        }

    def _perturbed(self, value: Tensor, generator: torch.Generator) -> Tensor:
        """value: (B, ..., width), one of the text conditions."""
        if self.config.caption_noise:
            # Conditional embedding perturbation, Gaussian form (Chen et al. 2024, "Slight
            # corruption in pre-training data makes better diffusion models"). The expected length
            # of the noise is caption_noise at every width.
            scale = self.config.caption_noise / value.shape[-1] ** 0.5
            noise = torch.randn(value.shape, generator=generator, device=value.device)
            value = value + (scale * noise).to(value.dtype)
        return value

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

    def denoiser(self, network: nn.Module, conditions: BatchConditions) -> Callable[..., Tensor]:
        family, sizes = self.components.family, conditions.sizes
        if self.captions is None and conditions.tagged is None:
            return family.denoiser(network, conditions.text, sizes)

        def denoise(noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            text = self._text_at(t, conditions, rows)
            if self.captions is None:
                return family.denoiser(network, text, sizes[rows])(noisy, t)
            return network(noisy, t, text, sizes[rows])

        return denoise

    def _text_at(
        self, t: Tensor, conditions: BatchConditions, rows: Tensor
    ) -> Conditions | list[str | None]:
        """The text of these rows at their times t, each (b,)."""
        text, tagged, levels = conditions.text, conditions.tagged, conditions.levels
        if levels is None:
            return [text[row] for row in rows]
        usable = levels[rows].usable_at(*self.process.alpha_sigma(t))
        if self.captions is not None:
            pairs = zip(rows.tolist(), usable.tolist(), strict=True)
            return [(text if clean else tagged)[row] for row, clean in pairs]
        return {
            key: torch.where(
                usable.view(-1, *[1] * (value.ndim - 1)), value[rows], tagged[key][rows]
            )
            for key, value in text.items()
        }

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
    """`value` (B, ...) with `empty`, (1, ...) or (B, ...), in the rows that are `dropped`, (B,)."""
    rows = dropped.view(-1, *[1] * (value.ndim - 1))
    return torch.where(rows, empty.to(value, non_blocking=True), value)
