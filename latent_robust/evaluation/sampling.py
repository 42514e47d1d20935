"""Drawing pictures from a trained network with a diffusers scheduler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from latent_robust.core import derive_generator
from latent_robust.errors import InputError


def sampling_scheduler(scheduler, sampler: str):
    """scheduler: the one that defines the noise process; sampler: "ddim" (deterministic) or
    "ddpm" (ancestral). Flow matching has one sampler, Euler's."""
    from diffusers import DDIMScheduler, DDPMScheduler

    if "FlowMatch" in type(scheduler).__name__:
        return type(scheduler).from_config(scheduler.config)
    if sampler == "ddim":
        return DDIMScheduler.from_config(scheduler.config)
    # With "trailing" the last step does not start at t = 0, where diffusers' learned variance then
    # interpolates from log(1e-20).
    return DDPMScheduler.from_config(scheduler.config, timestep_spacing="linspace")


def load_run(run: Path, sampler: str) -> tuple[nn.Module, object]:
    """=>  the averaged network of a finished pixel-space run, in evaluation mode, and a scheduler.

    Raises InputError when the run has not finished.
    """
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

    if not (run / "unet" / "config.json").exists():
        raise InputError(f"{run} has no finished network (unet/); resume its training first")
    network = UNet2DModel.from_pretrained(run / "unet", use_safetensors=True).eval()
    config = DDPMScheduler.load_config(run / "scheduler")
    flow = config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    kind = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    return network, sampling_scheduler(kind.from_config(config), sampler)


@torch.no_grad()
def draw_samples(
    network: nn.Module,
    scheduler,
    count: int,
    *,
    steps: int,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    """network: a diffusers UNet2DModel.  =>  (count, C, H, W) float32 on the CPU, not clamped.

    Picture i starts from (and, for ancestral samplers, is driven by) its own random stream, so it
    does not depend on the batch size. A network with more outputs than the scheduler can use (a
    learned variance under DDIM) gives its mean only.
    """
    config = network.config
    # DDIM must follow the noise that belongs to the clipped picture, not the network's own.
    clipped = (
        {"use_clipped_model_output": scheduler.config.get("clip_sample", False)}
        if "DDIM" in type(scheduler).__name__
        else {}
    )
    shape = (config.in_channels, config.sample_size, config.sample_size)
    takes_variance = getattr(scheduler.config, "variance_type", "").startswith("learned") and (
        "DDPM" in type(scheduler).__name__
    )
    pictures = []
    for first in range(0, count, batch_size):
        generators = [
            derive_generator(seed, "sample", i)
            for i in range(first, min(first + batch_size, count))
        ]
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        scheduler.set_timesteps(steps, device=device)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x))).sample.float()
            if not takes_variance:
                output = output[:, : shape[0]]
            x = scheduler.step(output, t, x, generator=generators, **clipped).prev_sample
        pictures.append(x.float().cpu())
    return torch.cat(pictures) if pictures else torch.zeros(0, *shape)
