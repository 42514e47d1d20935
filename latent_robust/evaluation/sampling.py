"""Generating images with a trained network and a diffusers scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latent_robust.core import NoiseProcess, derive_generator
from latent_robust.errors import InputError

logger = logging.getLogger(__name__)

# (x, step, images)  =>  the value that replaces x. x: (B, C, H, W), noisy, at
# scheduler.timesteps[step]; images: the numbers of these B images.
Perturb = Callable[[Tensor, int, range], Tensor]


def sampling_scheduler(scheduler, sampler: str):
    """scheduler: defines the noise process. sampler: "ddim" (deterministic) or "ddpm" (ancestral);
    flow matching always uses Euler's."""
    from diffusers import DDIMScheduler, DDPMScheduler

    if "FlowMatch" in type(scheduler).__name__:
        return type(scheduler).from_config(scheduler.config)
    if sampler == "ddim":
        return DDIMScheduler.from_config(scheduler.config)
    # With "trailing" the last step does not start at t = 0, where diffusers' learned variance then
    # interpolates from log(1e-20).
    return DDPMScheduler.from_config(scheduler.config, timestep_spacing="linspace")


def predict(network: nn.Module, scheduler, x: Tensor, t: Tensor) -> Tensor:
    """The network's output for x (B, C, H, W) at time t (), as the scheduler takes it: (B, C, H, W)
    float32, or (B, 2C, H, W) if it takes a learned variance (DDIM does not)."""
    output = network(x, t.expand(len(x))).sample.float()
    takes_variance = getattr(scheduler.config, "variance_type", "").startswith("learned") and (
        "DDPM" in type(scheduler).__name__
    )
    return output if takes_variance else output[:, : x.shape[1]]


def advance(
    scheduler, output: Tensor, t: Tensor, x: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """One step of the sampler from x at t.  =>  x at the next time.

    output: of `predict`. generators: one for each image, for ancestral noise."""
    # DDIM must go on with the noise that belongs to the clipped image, not with the network's.
    clipped = (
        {"use_clipped_model_output": scheduler.config.get("clip_sample", False)}
        if "DDIM" in type(scheduler).__name__
        else {}
    )
    return scheduler.step(output, t, x, generator=list(generators), **clipped).prev_sample


def clean_estimate(scheduler, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The sampler's estimate of the clean image, (B, C, H, W), clipped if the sampler clips.

    output: of `predict`, for x (B, C, H, W) at t ().
    """
    estimate = unclipped_estimate(scheduler, output, t, x)
    if scheduler.config.get("clip_sample", False):
        limit = scheduler.config.clip_sample_range
        estimate = estimate.clamp(-limit, limit)
    return estimate


def unclipped_estimate(scheduler, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """As `clean_estimate`, without clipping."""
    process = NoiseProcess.from_scheduler(scheduler)
    alpha, sigma = process(t.expand(len(x)), x)
    return process.parameterization.to_sample(x, output[:, : x.shape[1]], alpha, sigma)


def last_step(scheduler, stop_at: float | None) -> int | None:
    """Index of the last sampling step whose sigma / alpha is at least `stop_at`; 0 if no step's is.
    None if that is the sampler's own last step, so that nothing has to be stopped."""
    if stop_at is None:
        return None
    times = scheduler.timesteps
    alpha, sigma = NoiseProcess.from_scheduler(scheduler)(times, times[:, None])
    last = max(int((sigma >= stop_at * alpha).sum()) - 1, 0)
    return last if last < len(times) - 1 else None


@torch.no_grad()
def generate_samples(
    network: nn.Module,
    scheduler,
    count: int,
    *,
    steps: int,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    perturb: Perturb | None = None,
    stop_at: float | None = None,
) -> Tensor:
    """network: a diffusers UNet2DModel.  =>  (count, C, H, W) float32 on the CPU, not clamped.

    Image i has a random stream of its own, for its start and for ancestral noise, so it does not
    depend on the batch size. perturb: called before each step (attacks.py). stop_at: the sampler
    stops at this sigma / alpha and returns its clean estimate there, so that it does not add the
    noise that the network would generate at lower levels.
    """
    config = network.config
    _check_steps(scheduler, steps)
    shape = (config.in_channels, config.sample_size, config.sample_size)
    batches = []
    for first in range(0, count, batch_size):
        images = range(first, min(first + batch_size, count))
        generators = [derive_generator(seed, "sample", i) for i in images]
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        scheduler.set_timesteps(steps, device=device)
        last = last_step(scheduler, stop_at)
        label = f"generating images {images.start + 1:,} to {images.stop:,} of {count:,}"
        for step, t in enumerate(tqdm(scheduler.timesteps, label, delay=2, leave=False)):
            if perturb is not None:
                x = perturb(x, step, images)
            output = predict(network, scheduler, x, t)
            if step == last:
                x = clean_estimate(scheduler, output, t, x)
                break
            x = advance(scheduler, output, t, x, generators)
        batches.append(x.float().cpu())
    return torch.cat(batches) if batches else torch.zeros(0, *shape)


def _check_steps(scheduler, steps: int) -> None:
    """InputError for more steps than times. A warning if DDIM, which advances by times // steps,
    would advance by another interval than that between its times."""
    times = scheduler.config.num_train_timesteps
    if steps > times:
        raise InputError(
            f"{steps:,} sampling steps are more than the {times:,} times of the noise process; use "
            f"at most {times:,}"
        )
    scheduler.set_timesteps(steps)
    gaps = -scheduler.timesteps.diff()
    if "DDIM" in type(scheduler).__name__ and not (gaps == times // steps).all():
        near = min((n for n in range(1, times + 1) if times % n == 0), key=lambda n: abs(n - steps))
        logger.warning(
            "%d sampling steps do not divide %d times: diffusers' DDIM then steps to other times "
            "than those at which it calls the network, and images get noisier; use %d",
            *(steps, times, near),
        )
