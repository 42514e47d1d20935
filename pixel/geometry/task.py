"""Batches and denoiser for points (N, D); sampling and reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from latent_robust.core import NoiseProcess
from latent_robust.evaluation.sampling import Perturb, generate_samples, sampling_scheduler
from latent_robust.training.config import EXPERIMENT, NEED, STRENGTH, TrainConfig
from latent_robust.training.options import setting

from .network import ResidualMLP
from .toys import TOYS

SAMPLING_STEPS = 100


class GeometryConfig(TrainConfig):
    """Train on a toy whose exact distribution is known."""

    data: Literal[TOYS] = setting("plane", "which toy", NEED)
    clean: bool = setting(False, "train on clean points, which gives the floor", EXPERIMENT)
    samples: int = setting(5000, "points generated for the metrics", EXPERIMENT, ge=2)

    steps: int = setting(3000, "optimizer steps", NEED, ge=1)
    batch_size: int = setting(256, "points per step", NEED, ge=1)
    ema_decay: float = setting(0.999, "decay of the averaged weights", EXPERIMENT, ge=0, lt=1)
    weight: float = setting(1.0, "strength of the regularizer", STRENGTH, ge=0)
    band: float = setting(0.3, "noise level below which the regularizer acts", STRENGTH, gt=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", EXPERIMENT, ge=1)
    keep_checkpoints: int = setting(1, "checkpoints to keep", EXPERIMENT, ge=1)
    device: Literal["cpu"] = setting("cpu", "where to train", EXPERIMENT)


class PointSet(Dataset):
    """points: (N, D)."""

    def __init__(self, points: Tensor):
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(indices)
        return {"sample": self.points[index], "index": index}


def noise_scheduler() -> DDPMScheduler:
    return DDPMScheduler(clip_sample=False, timestep_spacing="trailing")


class PointTask:
    """The `Task` of latent_robust/training/loop.py for points (N, D)."""

    def __init__(self, points: Tensor):
        self.network = ResidualMLP(points.shape[1])
        self.dataset = PointSet(points)
        self.buckets = [range(len(points))]
        self.process = NoiseProcess.from_scheduler(noise_scheduler())

    def prepare(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, None]:
        return batch["sample"], None

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        return self.process.draw_times(batch, generator)

    def denoiser(self, network: nn.Module, conditions: None) -> Callable[..., Tensor]:
        return lambda noisy, t, rows: network(noisy, t).sample

    def auxiliary_loss(self, denoise: Callable, sample: Tensor, t: Tensor) -> None:
        return None

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        pass


def generate_points(
    network: ResidualMLP, count: int, seed: int, perturb: Perturb | None = None
) -> Tensor:
    """=>  (count, D), by deterministic DDIM, which solves the probability-flow ODE."""
    scheduler = sampling_scheduler(noise_scheduler(), "ddim")
    points = generate_samples(
        network,
        scheduler,
        count,
        steps=SAMPLING_STEPS,
        seed=seed,
        batch_size=count,
        perturb=perturb,
    )
    return points.flatten(1)


@torch.no_grad()
def reconstruct(network: ResidualMLP, points: Tensor, t: int, generator: torch.Generator) -> Tensor:
    """Noise points (N, D) to time t and denoise them in one step.  =>  (N, D)."""
    process = NoiseProcess.from_scheduler(noise_scheduler())
    times = torch.full((len(points),), t)
    alpha, sigma = process(times, points)
    noise = torch.randn(points.shape, generator=generator)
    noisy = process.add_noise(points, noise, times)
    prediction = network(noisy, times).sample
    return process.parameterization.to_sample(noisy, prediction, alpha, sigma)
