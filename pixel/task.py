"""Batches, denoiser and previews of pixel-space training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_robust.core import Levels, NoiseProcess
from latent_robust.data import ContaminatedImages
from latent_robust.evaluation.figures import save_grid
from latent_robust.evaluation.sampling import generate_samples, sampling_scheduler

from .config import PixelConfig
from .network import build_network, training_scheduler
from .tagged import tags, untagged
from .variance import LearnedVariance

PREVIEW, COLUMNS = 36, 6  # of the grids in samples/; few images, so that noise stays visible


class PixelTask:
    """The `Task` of latent_robust/training/loop.py for images in [-1, 1].

    levels: of each image, for a network that knows dirty images as a class; else None. left_out:
    (N,), bool, images that are never used.
    """

    def __init__(
        self,
        config: PixelConfig,
        dataset: ContaminatedImages,
        out: Path,
        main: bool,
        levels: Levels | None = None,
        left_out: Tensor | None = None,
    ):
        self.config, self.dataset, self.levels = config, dataset, levels
        everything = range(len(dataset))
        used = everything if left_out is None else [i for i in everything if not left_out[i]]
        self.buckets: list[Sequence[int]] = [used]
        self.out, self.main = out, main
        self.stop_at = config.stop_at
        self.network = build_network(config)
        self.scheduler = training_scheduler(config)
        self.process = NoiseProcess.from_scheduler(self.scheduler)

    def prepare(
        self, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, Levels | None]:
        sample = batch["sample"].to(generator.device, non_blocking=True)
        if self.config.flip:
            coin = torch.rand(len(sample), generator=generator, device=generator.device) < 0.5
            sample = torch.where(coin.view(-1, 1, 1, 1), sample.flip(-1), sample)
        levels = self.levels
        return sample, None if levels is None else levels[batch["index"]].to(generator.device)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        return self.process.draw_times(batch, generator)

    def denoiser(self, network: nn.Module, conditions: Levels | None) -> Callable[..., Tensor]:
        if conditions is not None:
            return lambda noisy, t, rows: network(
                noisy, t, class_labels=tags(self.process, t, conditions[rows])
            ).sample.float()
        if self.config.learned_variance:
            return LearnedVariance(network, self.process)
        return lambda noisy, t, rows: network(noisy, t).sample.float()

    def auxiliary_loss(self, denoise: Callable, sample: Tensor, t: Tensor) -> Tensor | None:
        return denoise.loss(sample, t) if self.config.learned_variance else None

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        if self.main and step > 0:  # an untrained network generates noise
            save_grid(
                self.generate(network, PREVIEW),
                self.out / "samples" / f"step-{step:08d}.png",
                COLUMNS,
            )

    def generate(self, network: nn.Module, count: int) -> Tensor:
        """=>  (count, C, H, W), about [-1, 1]; the same seed gives the same initial noise."""
        return generate_samples(
            untagged(network),
            sampling_scheduler(self.scheduler, self.config.sampler),
            count,
            steps=self.config.sampling_steps,
            seed=self.config.seed,
            device=next(network.parameters()).device,
            stop_at=self.stop_at,
        )
