"""A single .safetensors file with the original weight names, as ComfyUI and A1111 use them.

Such a file holds no configuration and no tokenizer, often no text encoder, sometimes no VAE. The
missing parts come from a diffusers folder around it (a model_index.json in the same folder), or
from the Hugging Face Hub.
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
# diffusers' name of a layout -> its pipeline class
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
    """The header of a file, read without the weights. shapes: meta tensors by weight name."""

    shapes: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Header:
        """InputError for a file that is not a safetensors file."""
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
    """For arguments and errors see `load_components`. Text encoders that the file itself holds are
    loaded in the network's dtype."""
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
    except NotImplementedError as error:  # torch cannot move weights that were not loaded
        raise InputError(f"{path} lacks weights that a {layout} model has. {DAMAGED}") from error
    except LIBRARY_ERRORS as error:
        raise InputError(f"cannot load {path}: {first_sentence(error)}. {DAMAGED}") from error
    return _with_own_prediction_type(loaded, header, layout, path)


def recognise_layout(shapes: dict[str, Tensor], path: Path) -> str:
    """One of LAYOUTS, by the names and shapes of the weights. InputError for all others."""
    if any("lora_" in key or ".lora" in key for key in shapes):
        raise InputError(f"{path} is a LoRA, not a model; give the base model that it belongs to")
    layout = infer_diffusers_model_type(shapes)
    # diffusers also returns "v1" for layouts that it does not know.
    if layout not in LAYOUTS or (layout == "v1" and UNET_INPUT not in shapes):
        raise InputError(
            f"{path} belongs to no known family, judging by its weight names. {BASE_REMEDY}"
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
    """A diffusers folder with at least the configuration and the tokenizers: the file's own folder,
    else one from the Hub. InputError if neither is there."""
    if (path.parent / "model_index.json").is_file():
        return path.parent
    try:
        return fetch(_model_of(layout), (), offline=offline)
    except InputError as error:
        raise InputError(
            f"{path} holds weights, but neither configuration nor tokenizers. Put it into a "
            "diffusers folder of the same family, next to its model_index.json (weights in that "
            "folder are used only where the file lacks them), or download them from the Hub once: "
            f'hf download {_model_of(layout)} --include "*.json" "*.txt" "*.model"'
        ) from error


def _model_of(layout: str) -> str:
    """The Hub name of the model whose configuration files of this layout share."""
    return DIFFUSERS_DEFAULT_PIPELINE_PATHS[layout]["pretrained_model_name_or_path"]


def _with_own_prediction_type(
    pipeline: DiffusionPipeline, header: Header, layout: str, path: Path
) -> DiffusionPipeline:
    """Set the scheduler to what the file declares. A fine-tuned model may predict something else
    than its base. It declares that in its metadata (modelspec), or by empty weights named v_pred
    and ztsnr (zero terminal signal-to-noise ratio)."""
    declared = header.metadata.get("modelspec.prediction_type", "")
    changes = {}
    if "v_pred" in header.shapes or declared.startswith("v"):
        changes["prediction_type"] = "v_prediction"
    elif declared.startswith("eps"):
        changes["prediction_type"] = "epsilon"
    elif layout == "v2":
        logger.warning(
            f"{path} does not declare whether it predicts epsilon (SD 2.x base, 512 pixels) or v "
            f"(768 pixels); assuming {pipeline.scheduler.config.prediction_type}. If that is "
            "wrong, put the file into a diffusers folder of the right model"
        )
    if "ztsnr" in header.shapes:
        changes["rescale_betas_zero_snr"] = True
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, **changes
        )
    return pipeline
