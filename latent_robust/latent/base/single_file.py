"""A single .safetensors file, as ComfyUI and A1111 use them: weights under the original names.

Such a file holds no configuration and no tokenizer, often no text encoder, sometimes no VAE. What
it lacks comes from a diffusers folder around it (a model_index.json beside it), or from the hub.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from safetensors import safe_open
from torch import Tensor, nn

from latent_robust.errors import InputError

from .folder import (
    IGNORED,
    Dtypes,
    open_part,
    part_classes,
    read_index,
)
from .hub import fetch
from .recognise import BASE_REMEDY, PIPELINES
from .weight_checks import DAMAGED, LIBRARY_ERRORS, first_sentence

logger = logging.getLogger(__name__)

UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
# diffusers' name of a layout -> the pipeline
LAYOUTS = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}


@dataclass
class Header:
    """What a file says without its weights being read. shapes: tensors on the meta device."""

    shapes: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Header:
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {
                    key: torch.empty(file.get_slice(key).get_shape(), device="meta")
                    for key in file.keys()  # noqa: SIM118, a safe_open is not a dict
                }
                return cls(shapes, file.metadata() or {})
        except LIBRARY_ERRORS as error:
            raise InputError(
                f"{path} is not a safetensors file: {first_sentence(error)}. {DAMAGED}"
            ) from error


def open_single_file(path: Path, *, offline: bool, dtypes: Dtypes) -> DiffusionPipeline:
    """See `load_components`; text encoders that are in the file are in the network's dtype."""
    header = Header.read(path)
    layout = recognise_layout(header.shapes, path)
    pipeline = PIPELINES[LAYOUTS[layout]]
    folder = _folder_around(path, layout, offline)
    index, config = read_index(folder), str(folder)
    absent = {
        name: part_class
        for name, part_class in part_classes(index, folder).items()
        if issubclass(part_class, nn.Module) and not _holds(header.shapes, name, part_class)
    }
    if absent and folder != path.parent:
        folder = fetch(_model_of(layout), absent, offline=offline)
    parts = dict.fromkeys(name for name in IGNORED if name in index)
    parts |= {
        name: open_part(kind, folder / name, dtypes.of(name)) for name, kind in absent.items()
    }
    try:
        if "vae" not in parts:
            parts["vae"] = AutoencoderKL.from_single_file(
                str(path), config=config, subfolder="vae", dtype=dtypes.of("vae")
            )
        loaded = pipeline.from_single_file(
            str(path), config=config, dtype=dtypes.network, local_files_only=True, **parts
        )
    except NotImplementedError as error:  # torch's, when it moves weights that were never read
        raise InputError(f"{path} lacks weights that a {layout} model has. {DAMAGED}") from error
    except LIBRARY_ERRORS as error:
        raise InputError(f"cannot load {path}: {first_sentence(error)}. {DAMAGED}") from error
    return _with_own_prediction_type(loaded, header, layout, path)


def recognise_layout(shapes: dict[str, Tensor], path: Path) -> str:
    """One of LAYOUTS, by the names and shapes of the weights; raises InputError for all others."""
    if any("lora_" in key or ".lora" in key for key in shapes):
        raise InputError(f"{path} is a LoRA, not a model; give the model that it belongs to")
    layout = infer_diffusers_model_type(shapes)
    # "v1" is also diffusers' answer to what it does not know.
    if layout not in LAYOUTS or (layout == "v1" and UNET_INPUT not in shapes):
        raise InputError(
            f"{path} is of no known family, going by the names of its weights. {BASE_REMEDY}"
        )
    return layout


def _holds(shapes: dict[str, Tensor], name: str, part_class: type) -> bool:
    if name == "vae":
        return any(key.startswith(("first_stage_model.", "vae.")) for key in shapes)
    if name.startswith("text_encoder"):
        return is_clip_model_in_single_file(part_class, shapes) or (
            part_class.__name__.startswith("T5") and is_t5_in_single_file(shapes)
        )
    return True


def _folder_around(path: Path, layout: str, offline: bool) -> Path:
    """A diffusers folder with at least the configuration and the tokenizers."""
    if (path.parent / "model_index.json").is_file():
        return path.parent
    try:
        return fetch(_model_of(layout), (), offline=offline)
    except InputError as error:
        raise InputError(
            f"{path} holds weights, but neither configuration nor tokenizers. Put it into a "
            "diffusers folder of the same family, beside its model_index.json (of other weights in "
            "there only those are used that the file lacks), or let them come from the hub once: "
            f'hf download {_model_of(layout)} --include "*.json" "*.txt" "*.model"'
        ) from error


def _model_of(layout: str) -> str:
    """The name on the hub of the model whose configuration a file of this layout has."""
    return DIFFUSERS_DEFAULT_PIPELINE_PATHS[layout]["pretrained_model_name_or_path"]


def _with_own_prediction_type(
    pipeline: DiffusionPipeline, header: Header, layout: str, path: Path
) -> DiffusionPipeline:
    """Fine-tuned models may predict something else than the model that they started from, and say
    so in their metadata (modelspec) or by an empty weight named v_pred, and ztsnr."""
    said = header.metadata.get("modelspec.prediction_type", "")
    changes = {}
    if "v_pred" in header.shapes or said.startswith("v"):
        changes["prediction_type"] = "v_prediction"
    elif said.startswith("eps"):
        changes["prediction_type"] = "epsilon"
    elif layout == "v2":
        logger.warning(
            f"{path} does not say whether it predicts epsilon (SD 2.x base, 512 pixels) or v (768 "
            f"pixels); taken to predict {pipeline.scheduler.config.prediction_type}. If that is "
            "wrong, put it into a diffusers folder of the right model"
        )
    if "ztsnr" in header.shapes:
        changes["rescale_betas_zero_snr"] = True
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, **changes
        )
    return pipeline
