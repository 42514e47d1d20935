"""LoRA files: diffusers' format with what peft needs to rebuild an adapter, and kohya's."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import cast_training_params
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latent_robust.core import Parameterization
from latent_robust.errors import InputError
from latent_robust.files import write_atomically, writing
from latent_robust.latent.base.components import Components
from latent_robust.latent.base.library_logging import silence_libraries

from .adapters import ADAPTER, adapted_parts, freeze
from .kohya import kohya_metadata, to_kohya

logger = logging.getLogger(__name__)
MAGNITUDE = "lora_magnitude_vector"
MAGNITUDE_IN_FILE = f"{MAGNITUDE}.weight"  # of text encoders: the only name transformers 5 reads
KOHYA_NAME = "lora_kohya.safetensors"
# What peft needs to rebuild an adapter. Not all that its configuration holds: older versions
# refuse keys they do not know, and `lora_dropout` would go on dropping when diffusers samples.
CONFIG_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora")


def save_lora(components: Components, folder: Path) -> list[Path]:
    """Write the adapters for diffusers and, where the family has the format, for ComfyUI and A1111
    (without DoRA).  =>  the files, each whole or, after an InputError of the disk, as before."""
    files = [_save_for_diffusers(components, folder / LORA_WEIGHT_NAME_SAFE)]
    if components.family.kohya:
        files += _save_for_kohya(components, folder / KOHYA_NAME)
    return files


def _save_for_diffusers(components: Components, path: Path) -> Path:
    parts = {}
    for name, part in adapted_parts(components).items():
        tensors = _adapter_tensors(part)
        if name in components.text_encoders:
            tensors = {
                _text_name(part, key).replace(MAGNITUDE, MAGNITUDE_IN_FILE): value
                for key, value in tensors.items()
            }
        config = part.peft_config[ADAPTER]
        parts[f"{name}_lora_layers"] = {k: v.detach().cpu() for k, v in tensors.items()}
        parts[f"{name}_lora_adapter_metadata"] = {
            **{key: getattr(config, key) for key in CONFIG_KEYS},
            "target_modules": sorted(config.target_modules),
        }
    with writing(path), TemporaryDirectory() as temporary:
        components.pipeline.save_lora_weights(temporary, **parts)
        write_atomically(path, Path(temporary, LORA_WEIGHT_NAME_SAFE).read_bytes())
    return path


def _save_for_kohya(components: Components, path: Path) -> list[Path]:
    config = components.network.peft_config[ADAPTER]
    if config.use_dora:
        logger.warning("%s is not written: its format has no DoRA that programs agree on", path)
        return []
    name = components.family.name
    predicts_v = components.process.parameterization is Parameterization.V_PREDICTION
    tensors = to_kohya(lora_layers(components), ADAPTER, name)
    metadata = kohya_metadata(name, predicts_v, config.r, config.lora_alpha)
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return [path]


def lora_layers(components: Components) -> dict[str, LoraLayer]:
    """The adapted layers by diffusers' names, `unet.…`, `text_encoder.text_model.…`."""
    return {
        f"{part}.{_text_name(module, name) if part in components.text_encoders else name}": layer
        for part, module in adapted_parts(components).items()
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _text_name(encoder: nn.Module, name: str) -> str:
    """Everybody's files have a `text_model.` that transformers 5 took out of CLIPTextModel."""
    return name if hasattr(encoder, "text_model") else f"text_model.{name}"


def load_lora(components: Components, file: str | Path) -> None:
    """Instead of `add_lora`: the adapters of a file in either format, to be trained on in float32
    (without dropout) or sampled with. InputError if it is damaged, empty or for another base."""
    file = Path(file)
    _check_readable(file)
    freeze(components)
    try:
        with silence_libraries():
            stored = _read(components, file)
            components.pipeline.load_lora_weights(
                file.parent, weight_name=file.name, adapter_name=ADAPTER
            )
    except (KeyError, RuntimeError, ValueError) as error:
        raise _unfit(file, components, shorten(str(error), 200)) from error
    for part in adapted_parts(components).values():
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(f".{ADAPTER}" in name)
        cast_training_params(part)
    loaded = _tensors(components, file, stored)
    for name, value in loaded.items():
        if not torch.allclose(value, stored[name].to(value), rtol=0.01, atol=1e-7):
            raise _unfit(file, components, f"{name!r} was not read as it is stored")
        value.copy_(stored[name])  # until here it was rounded to the dtype of the model


def start_from_lora(components: Components, file: Path) -> None:
    """The values of a file for the adapters of `add_lora`, which must be of the same kind."""
    _check_readable(file)
    with silence_libraries():
        stored = _read(components, file)
    for name, value in _tensors(components, file, stored).items():
        value.copy_(stored[name])


def _tensors(components: Components, file: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters' own, by their names. InputError if those of the file have other names:
    libraries only warn of what is missing or left over, and begin with random values."""
    tensors = {
        f"{part_name}.{name}": value
        for part_name, part in adapted_parts(components).items()
        for name, value in _adapter_tensors(part).items()
    }
    if stray := sorted(tensors.keys() ^ stored.keys()):
        owner = "file" if stray[0] in stored else "model"
        raise _unfit(file, components, f"only the {owner} has {stray[0]!r}")
    return tensors


def _adapter_tensors(part: nn.Module) -> dict[str, Tensor]:
    # Left to itself, peft looks the base model up, on the hub if need be, and adds the token
    # embedding where its vocabulary is not that of the file.
    return get_peft_model_state_dict(part, adapter_name=ADAPTER, save_embedding_layers=False)


def _check_readable(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is not a .safetensors file; LoRA is read from no other format")
    try:
        with safe_open(file, "pt") as content:
            names = list(content.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {file}: {error}; is it complete?") from None
    if not names:
        raise InputError(f"{file} is empty: it has no LoRA layer")


def _read(components: Components, file: Path) -> dict[str, Tensor]:
    """=>  all tensors, as peft names them in this model, `unet.….lora_A.weight`."""
    found = components.pipeline.lora_state_dict(file.parent, weight_name=file.name)
    found = found[0] if isinstance(found, tuple) else found  # some families add alphas
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return {
        f"{part}.{name}": value
        for part, tensors in parts.items()
        for name, value in _peft_names(tensors, components.text_encoders.get(part)).items()
    }


def _peft_names(tensors: dict[str, Tensor], encoder: nn.Module | None) -> dict[str, Tensor]:
    """The tensors of a text encoder, or of the network (None)."""
    if encoder is None:
        return convert_unet_state_dict_to_peft(tensors)
    tensors = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
    extra = "" if hasattr(encoder, "text_model") else "text_model."
    return {
        name.removeprefix(extra).replace(MAGNITUDE_IN_FILE, MAGNITUDE): value
        for name, value in tensors.items()
    }


def _unfit(file: Path, components: Components, reason: str) -> InputError:
    return InputError(
        f"{file} does not fit this {components.family.name} model: {reason}. A LoRA needs the base "
        "that it was trained on, or one of the same architecture"
    )
