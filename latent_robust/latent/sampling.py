"""Drawing images with the family's own diffusers pipeline, for captions encoded beforehand."""

from __future__ import annotations

import copy

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor, nn

from latent_robust.core import derive_generator

from .base.components import TEXT_ENCODERS, Components
from .base.families import Conditions, Family
from .eval_mode import evaluation_mode

# Images of so many pixels in all are drawn at a time: four of 512 x 512, which takes less memory
# than training on one.
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
    """Draw one image for each caption.  =>  (N, 3, height, width) float32, CPU, in [-1, 1].

    conditions: `encode_text` of N captions; empty: `empty_text`; size: height and width in pixels,
    multiples of `family.multiple`. guidance: classifier-free, off at <= 1; FLUX has none and is
    told the number. batch_size: by default as many as have PIXELS. Image i has the random stream
    of number `first` + i, so it does not depend on what else is drawn. The text encoders are not
    needed, the VAE is: RuntimeError if it was unloaded. Training is not disturbed: modes, scheduler
    and torch's random state are as before.
    """
    text, empty = (_to_network(c, components.network) for c in (conditions, empty))
    count, images = len(next(iter(text.values()))), []
    batch_size = batch_size or min(128, max(1, PIXELS // (size[0] * size[1])))
    with evaluation_mode(components.network, components.vae):
        pipeline = _without_encoders(components.pipeline)
        for start in range(0, count, batch_size):
            rows = {key: value[start : start + batch_size] for key, value in text.items()}
            numbers = range(start, min(start + batch_size, count))
            latents = pipeline(
                **_embeddings(components.family, rows, empty),
                height=size[0],
                width=size[1],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[derive_generator(seed, "sample", first + i) for i in numbers],
                output_type="latent",
            ).images
            if components.family.name == "flux":
                factor = pipeline.vae_scale_factor
                latents = FluxPipeline._unpack_latents(latents, *size, factor)
            images.append(components.decode_latents(latents.float()).clamp(-1, 1).cpu())
    return torch.cat(images)


def _to_network(conditions: Conditions, network: nn.Module) -> Conditions:
    return {key: value.to(network.device, network.dtype) for key, value in conditions.items()}


def _without_encoders(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The same network in a pipeline of its own, which takes device and precision from it alone,
    and whose scheduler starts anew."""
    pipeline = copy.copy(pipeline)
    for name in ("vae", *TEXT_ENCODERS):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _embeddings(family: Family, text: Conditions, empty: Conditions) -> dict[str, Tensor]:
    """What each family's pipeline takes in place of a prompt. text: (B, ...); empty: (1, ...)."""
    none = {key: value.expand_as(text[key]) for key, value in empty.items()}
    prompt = {"prompt_embeds": text["text"], "negative_prompt_embeds": none["text"]}
    match family.name:
        case "sd1" | "sd2":
            return prompt
        case "sdxl" | "sd3":
            pooled = {"negative_pooled_prompt_embeds": none["pooled"]}
            return {**prompt, "pooled_prompt_embeds": text["pooled"], **pooled}
        case "flux":
            return {"prompt_embeds": text["text"], "pooled_prompt_embeds": text["pooled"]}
    raise ValueError(f"no pipeline arguments are known for the family {family.name!r}")
