"""Which family a checkpoint belongs to, read off what it holds, never off its name."""

from __future__ import annotations

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from latent_robust.errors import InputError

from .families import (
    Family,
    Flux,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
)
from .model_spec import KNOWN_FAMILIES

PIPELINES = {
    pipeline.__name__: pipeline
    for pipeline in (
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        StableDiffusion3Pipeline,
        FluxPipeline,
    )
}
BASE_REMEDY = (
    "Checkpoints for inpainting, editing, refining or control cannot be trained here; use their "
    f"text-to-image base model ({KNOWN_FAMILIES})"
)


def pipeline_class(name: str | None, model: str) -> type[DiffusionPipeline]:
    """name: `_class_name` of model_index.json.  =>  the class; raises InputError if unknown."""
    if name not in PIPELINES:
        kind = name or "checkpoint without a pipeline class"
        raise InputError(f"{model} is a {kind}, which is of no known family. {BASE_REMEDY}")
    return PIPELINES[name]


def recognise(pipeline: DiffusionPipeline, model: str) -> Family:
    """The family of a loaded pipeline. Raises InputError for another model of the same classes."""
    if not isinstance(pipeline.vae, AutoencoderKL):
        raise InputError(
            f"{model} has a {type(pipeline.vae).__name__} as VAE; only AutoencoderKL gives the "
            "mean and spread that training draws latents from"
        )
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    match pipeline:
        case StableDiffusionPipeline():
            # SD 2 is the architecture with linear projections; epsilon or v is the scheduler's.
            name = "sd2" if pipeline.unet.config.use_linear_projection else "sd1"
            family, packed = StableDiffusion(name, factor), 1
        case StableDiffusionXLPipeline():
            family, packed = StableDiffusionXL("sdxl", factor), 1
        case StableDiffusion3Pipeline():
            patch = pipeline.transformer.config.patch_size
            family, packed = StableDiffusion3("sd3", factor * patch), 1
        case FluxPipeline():
            family, packed = Flux("flux", 2 * factor), 4
        case _:
            pipeline_class(type(pipeline).__name__, model)
    _check_network(pipeline, family, packed, model)
    try:
        family.process(pipeline)
    except TypeError as error:
        raise InputError(
            f"the scheduler of {model} does not say how it was trained: {error}"
        ) from error
    return family


def _check_network(pipeline: DiffusionPipeline, family: Family, packed: int, model: str) -> None:
    """packed: how many latent pixels become channels of the network's input."""
    config = getattr(pipeline, family.network_name).config
    expected = packed * pipeline.vae.config.latent_channels
    if config.in_channels != expected:
        raise InputError(
            f"the network of {model} takes {config.in_channels} channels, a text-to-image model of "
            f"its family ({family.name}) takes {expected}. {BASE_REMEDY}"
        )
    if family.name == "sdxl" and (
        pipeline.text_encoder is None or pipeline.config.get("requires_aesthetics_score")
    ):
        raise InputError(f"{model} is an SDXL refiner. {BASE_REMEDY}")
