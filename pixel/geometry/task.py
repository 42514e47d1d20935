"""What a batch is, and what the network answers, for points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from latent_robust.core import NoiseProcess
from latent_robust.evaluation.sampling import Perturb, draw_samples, sampling_scheduler
from latent_robust.training.config import TrainConfig

from .network import ResidualMLP
from .toys import TOYS

SAMPLING_STEPS = 100


class GeometryConfig(TrainConfig):
    """Train on a toy of which the truth is known."""

    data: Literal[TOYS] = "plane"
    clean: bool = Field(False, description="train on the truth itself: the floor")
    samples: int = Field(5000, ge=2, description="points drawn for the metrics")

    steps: int = Field(3000, ge=1)
    batch_size: int = Field(256, ge=1)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    weight: float = Field(1.0, ge=0)
    band: float = Field(0.3, gt=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(1, ge=1)
    device: Literal["cpu"] = "cpu"


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
        self.groups = [range(len(points))]
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


def draw_points(
    network: ResidualMLP, count: int, seed: int, perturb: Perturb | None = None
) -> Tensor:
    """=>  (count, D), by deterministic DDIM: the probability-flow ODE of the closed forms."""
    scheduler = sampling_scheduler(noise_scheduler(), "ddim")
    points = draw_samples(
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
    """points (N, D), noised to time t and denoised in one step.  =>  (N, D)."""
    process = NoiseProcess.from_scheduler(noise_scheduler())
    times = torch.full((len(points),), t)
    alpha, sigma = process(times, points)
    noise = torch.randn(points.shape, generator=generator)
    noisy = process.add_noise(points, noise, times)
    prediction = network(noisy, times).sample
    return process.parameterization.to_sample(noisy, prediction, alpha, sigma)
