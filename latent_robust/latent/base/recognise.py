"""Recognise the family of a checkpoint by its contents, never by its name."""

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

FAMILIES: dict[type[DiffusionPipeline], type[Family]] = {
    StableDiffusionPipeline: StableDiffusion,
    StableDiffusionXLPipeline: StableDiffusionXL,
    StableDiffusion3Pipeline: StableDiffusion3,
    FluxPipeline: Flux,
}
PIPELINES = {pipeline.__name__: pipeline for pipeline in FAMILIES}
BASE_REMEDY = (
    "Checkpoints for inpainting, editing, refining or control cannot be trained here; use their "
    f"text-to-image base model ({KNOWN_FAMILIES})"
)


def pipeline_class(name: str | None, model: str) -> type[DiffusionPipeline]:
    """name: `_class_name` of model_index.json.  =>  the class. InputError if it is unknown."""
    if name not in PIPELINES:
        raise _unknown_family(name or "checkpoint without a pipeline class", model)
    return PIPELINES[name]


def recognise(pipeline: DiffusionPipeline, model: str) -> Family:
    """The family of a loaded pipeline. InputError for a model that has a known family's classes but
    another purpose, such as inpainting."""
    if not isinstance(pipeline.vae, AutoencoderKL):
        raise InputError(
            f"{model} has a {type(pipeline.vae).__name__} as VAE; training needs an AutoencoderKL, "
            "which gives the mean and standard deviation of the latents"
        )
    matches = (family for kind, family in FAMILIES.items() if isinstance(pipeline, kind))
    family_class = next(matches, None)
    if family_class is None:
        raise _unknown_family(type(pipeline).__name__, model)
    family = family_class.of(pipeline)
    _check_network(pipeline, family, model)
    try:
        family.process(pipeline)
    except TypeError as error:
        raise InputError(
            f"the scheduler of {model} does not define how the model was trained: {error}"
        ) from error
    return family


def _unknown_family(kind: str, model: str) -> InputError:
    return InputError(f"{model} is a {kind}, which belongs to no known family. {BASE_REMEDY}")


def _check_network(pipeline: DiffusionPipeline, family: Family, model: str) -> None:
    config = getattr(pipeline, family.network_name).config
    expected = family.channel_packing * pipeline.vae.config.latent_channels
    if config.in_channels != expected:
        raise InputError(
            f"the network of {model} takes {config.in_channels} channels, a text-to-image model of "
            f"its family ({family.name}) takes {expected}. {BASE_REMEDY}"
        )
    if kind := family.untrainable_kind(pipeline):
        raise InputError(f"{model} is {kind}. {BASE_REMEDY}")
