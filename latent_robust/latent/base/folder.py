"""A diffusers folder: its parts, loaded one by one."""

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
# Parts that training has no use for.
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class Dtypes:
    """network: of it; text: of the text encoders."""

    network: torch.dtype
    text: torch.dtype

    def of(self, part: str) -> torch.dtype:
        """part: its name in the pipeline. The VAE is small, used once per image, and overflows in
        float16: it is always float32."""
        if part == "vae":
            return torch.float32
        return self.text if part.startswith("text_encoder") else self.network


def open_folder(folder: Path, dtypes: Dtypes) -> DiffusionPipeline:
    """The parts with weights are loaded one by one, because only then do the libraries say which
    weights were missing and made up."""
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
    try:
        return DiffusionPipeline.load_config(folder, local_files_only=True)
    except LIBRARY_ERRORS as error:
        file = folder / "model_index.json"
        raise InputError(f"cannot read {file}: {first_sentence(error)}. {DAMAGED}") from error


def part_classes(index: dict, model: Path) -> dict[str, type]:
    """index: a parsed model_index.json.  =>  the classes of the parts that training uses."""
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    return {
        name: _class_of(*entry, name=name, model=model)
        for name, entry in parts.items()
        if name not in IGNORED
    }


def _class_of(library: str, class_name: str, *, name: str, model: Path) -> type:
    known = library in {"diffusers", "transformers"}
    found = getattr(importlib.import_module(library), class_name, None) if known else None
    if found is None:
        raise InputError(
            f"{name} of {model} is a {library}.{class_name}, which the installed diffusers and "
            "transformers do not have; code that comes with a checkpoint is not run"
        )
    return found


def open_part(part_class: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One network, with every weight from the checkpoint."""
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
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.to(dtypes.of(name))
    return pipeline
