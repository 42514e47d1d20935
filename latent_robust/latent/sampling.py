"""Generate images with the family's own diffusers pipeline, for captions encoded beforehand."""

from __future__ import annotations

import copy

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from latent_robust.core import derive_generator

from .base.components import TEXT_ENCODERS, Components
from .base.families import Conditions
from .eval_mode import evaluation_mode

# Pixels of the images that are generated at a time: four images of 512 x 512, which take less
# memory than training on one.
PIXELS = 4 * 512**2


def generate_images(
    components: Components,
    conditions: Conditions,
    *,
    empty: Conditions,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    seed: int,
    first: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Generate one image for each caption.  =>  (N, 3, height, width) float32, CPU, in [-1, 1].

    conditions: `encode_text` of N captions; empty: `empty_text`; size: height and width in pixels,
    multiples of `family.multiple`; guidance: strength of classifier-free guidance, off at <= 1 (for
    FLUX, which has none, an input of the network); first: number of the first image. Image i has
    the random stream of number `first` + i, so it does not depend on the other images.
    batch_size: by default as many images as have PIXELS.

    The text encoders are not needed. The VAE is: RuntimeError if it was unloaded. Training is not
    disturbed: module modes, scheduler and torch's random state are unchanged afterwards.
    """
    text, empty = (_to_network(c, components.network) for c in (conditions, empty))
    family = components.family
    count, images = len(next(iter(text.values()))), []
    batch_size = batch_size or min(128, max(1, PIXELS // (size[0] * size[1])))
    starts = range(0, count, batch_size)
    progress = tqdm(
        total=len(starts) * steps, desc=f"generating {count:,} images", delay=2, leave=False
    )

    def on_step(pipeline: DiffusionPipeline, step: int, t: Tensor, tensors: dict) -> dict:
        progress.update()
        return tensors

    with evaluation_mode(components.network, components.vae), progress:
        pipeline = _without_encoders(components.pipeline)
        for start in starts:
            rows = {key: value[start : start + batch_size] for key, value in text.items()}
            numbers = range(start, min(start + batch_size, count))
            latents = pipeline(
                **family.pipeline_arguments(rows, empty),
                height=size[0],
                width=size[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[derive_generator(seed, "sample", first + i) for i in numbers],
                output_type="latent",
                callback_on_step_end=on_step,
            ).images
            latents = family.unpack(latents, pipeline, size)
            images.append(components.decode_latents(latents.float()).clamp(-1, 1).cpu())
    return torch.cat(images)


def _to_network(conditions: Conditions, network: nn.Module) -> Conditions:
    return {key: value.to(network.device, network.dtype) for key, value in conditions.items()}


def _without_encoders(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with the same network and a new scheduler. Without encoders it takes device and
    precision from the network."""
    pipeline = copy.copy(pipeline)
    for name in ("vae", *TEXT_ENCODERS):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
