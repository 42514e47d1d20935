"""Load a diffusers folder part by part, refusing pickles and missing weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn

from latent_robust.errors import InputError

from .recognise import pipeline_class
from .weight_checks import (
    DAMAGED,
    LIBRARY_ERRORS,
    first_sentence,
    refuse_missing,
    refuse_pickled_part,
)

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# Parts that training does not use.
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class Dtypes:
    """network: dtype of the network; text: dtype of the text encoders."""

    network: torch.dtype
    text: torch.dtype

    def of(self, part: str) -> torch.dtype:
        """part: its name in the pipeline. The VAE is always in float32: it is small, is used once
        per image, and overflows in float16."""
        if part == "vae":
            return torch.float32
        return self.text if part.startswith("text_encoder") else self.network


def open_folder(folder: Path, dtypes: Dtypes) -> DiffusionPipeline:
    """Load each part with weights by itself: only then do the libraries report which weights were
    missing and were filled with random numbers. InputError as `load_components`."""
    index = read_index(folder)
    pipeline = pipeline_class(index.get("_class_name"), str(folder))
    parts = dict.fromkeys(name for name in IGNORED if name in index)
    for name, part_class in part_classes(index, folder).items():
        if issubclass(part_class, nn.Module):
            parts[name] = open_part(part_class, folder / name, dtypes.of(name))
    try:
        return pipeline.from_pretrained(folder, **parts, local_files_only=True)
    except LIBRARY_ERRORS as error:
        raise InputError(f"cannot read {folder}: {first_sentence(error)}. {DAMAGED}") from error


def read_index(folder: Path) -> dict:
    """=>  model_index.json, parsed. InputError if it cannot be read."""
    try:
        return DiffusionPipeline.load_config(folder, local_files_only=True)
    except LIBRARY_ERRORS as error:
        file = folder / "model_index.json"
        raise InputError(f"cannot read {file}: {first_sentence(error)}. {DAMAGED}") from error


def part_classes(index: dict, model: Path) -> dict[str, type]:
    """index: a parsed model_index.json.  =>  the classes of the parts that training uses, by name.

    InputError for a class that diffusers and transformers do not have."""
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    return {
        name: _class_of(*entry, name=name, model=model)
        for name, entry in parts.items()
        if name not in IGNORED
    }


def _class_of(library: str, class_name: str, *, name: str, model: Path) -> type:
    part_class = None
    if library in {"diffusers", "transformers"}:
        part_class = getattr(importlib.import_module(library), class_name, None)
    if part_class is None:
        raise InputError(
            f"{name} of {model} is a {library}.{class_name}, which the installed diffusers and "
            "transformers do not have. Update them if they are old; code that comes with a "
            "checkpoint is not run"
        )
    return part_class


def open_part(part_class: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load one part of a pipeline. InputError unless every weight comes from `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing. Download or copy the model again")
    refuse_pickled_part(folder)
    half_only = all(".fp16" in file.name for file in folder.glob("*.safetensors"))
    try:
        part, info = part_class.from_pretrained(
            folder,
            variant="fp16" if half_only else None,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except LIBRARY_ERRORS as error:
        raise InputError(f"cannot load {folder}: {first_sentence(error)}. {DAMAGED}") from error
    refuse_missing(list(info["missing_keys"]), str(folder))
    return part


def cast_parts(pipeline: DiffusionPipeline, dtypes: Dtypes) -> DiffusionPipeline:
    """The same pipeline, each part in its dtype."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.to(dtypes.of(name))
    return pipeline
