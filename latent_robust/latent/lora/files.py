"""Save and load LoRA files in the formats of diffusers and kohya.

diffusers' file also holds the configuration that peft needs to rebuild the adapters."""

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
# In text encoders transformers 5 reads no other name.
MAGNITUDE_IN_FILE = f"{MAGNITUDE}.weight"
KOHYA_NAME = "lora_kohya.safetensors"
# What peft needs to rebuild an adapter. The rest of its configuration is left out: older versions
# refuse unknown keys, and `lora_dropout` would stay active when diffusers samples.
CONFIG_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora")


def save_lora(components: Components, folder: Path) -> list[Path]:
    """Write the adapters for diffusers and, if that format covers the family, for ComfyUI and A1111
    (not with DoRA).  =>  the files.

    InputError if the disk refuses; an older file is then unchanged."""
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
        logger.warning("%s is not written: programs read DoRA in this format differently", path)
        return []
    name = components.family.name
    predicts_v = components.process.parameterization is Parameterization.V_PREDICTION
    tensors = to_kohya(lora_layers(components), ADAPTER, name)
    metadata = kohya_metadata(name, predicts_v, config.r, config.lora_alpha)
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return [path]


def lora_layers(components: Components) -> dict[str, LoraLayer]:
    """The adapted layers by their diffusers names: `unet.…`, `text_encoder.text_model.…`."""
    return {
        f"{part}.{_text_name(module, name) if part in components.text_encoders else name}": layer
        for part, module in adapted_parts(components).items()
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _text_name(encoder: nn.Module, name: str) -> str:
    """The layer's name in files. All LoRA files have a `text_model.` in it, which transformers 5
    removed from CLIPTextModel."""
    return name if hasattr(encoder, "text_model") else f"text_model.{name}"


def load_lora(components: Components, file: str | Path) -> None:
    """Add the adapters of a file in either format, instead of `add_lora`. They are trainable, in
    float32, without dropout. InputError if the file is damaged, empty or for another base."""
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
        raise _mismatch(file, components, shorten(str(error), 200)) from error
    for part in adapted_parts(components).values():
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(f".{ADAPTER}" in name)
        cast_training_params(part)
    loaded = _tensors(components, file, stored)
    for name, value in loaded.items():
        if not torch.allclose(value, stored[name].to(value), rtol=0.01, atol=1e-7):
            raise _mismatch(file, components, f"{name!r} was not loaded as it is stored")
        value.copy_(stored[name])  # the loaded value was rounded to the dtype of the model


def start_from_lora(components: Components, file: Path) -> None:
    """Copy the values of a file into the adapters that `add_lora` made. InputError if the file is
    damaged or its adapters are on other layers."""
    _check_readable(file)
    with silence_libraries():
        stored = _read(components, file)
    for name, value in _tensors(components, file, stored).items():
        value.copy_(stored[name])


def _tensors(components: Components, file: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters' tensors by their names. InputError if the file's tensors have other names:
    libraries only warn about missing or surplus ones and keep random values."""
    tensors = {
        f"{part_name}.{name}": value
        for part_name, part in adapted_parts(components).items()
        for name, value in _adapter_tensors(part).items()
    }
    if stray := sorted(tensors.keys() ^ stored.keys()):
        owner = "file" if stray[0] in stored else "model"
        raise _mismatch(file, components, f"only the {owner} has {stray[0]!r}")
    return tensors


def _adapter_tensors(part: nn.Module) -> dict[str, Tensor]:
    # By default peft looks up the base model, if necessary on the Hub, and adds the token embedding
    # if the vocabularies differ.
    return get_peft_model_state_dict(part, adapter_name=ADAPTER, save_embedding_layers=False)


def _check_readable(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not a .safetensors file, the only format that LoRA is read from"
        )
    try:
        with safe_open(file, "pt") as content:
            names = list(content.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {file}: {error}. It may be incomplete; download or copy it again"
        ) from None
    if not names:
        raise InputError(f"{file} is empty, it has no LoRA layer; give another file")


def _read(components: Components, file: Path) -> dict[str, Tensor]:
    """=>  all tensors, by peft's names in this model: `unet.….lora_A.weight`."""
    stored = components.pipeline.lora_state_dict(file.parent, weight_name=file.name)
    stored = stored[0] if isinstance(stored, tuple) else stored  # some families add alphas
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return {
        f"{part}.{name}": value
        for part, tensors in parts.items()
        for name, value in _peft_names(tensors, components.text_encoders.get(part)).items()
    }


def _peft_names(tensors: dict[str, Tensor], encoder: nn.Module | None) -> dict[str, Tensor]:
    """The tensors by peft's names. encoder: the text encoder they belong to; None: the network."""
    if encoder is None:
        return convert_unet_state_dict_to_peft(tensors)
    tensors = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
    extra = "" if hasattr(encoder, "text_model") else "text_model."
    return {
        name.removeprefix(extra).replace(MAGNITUDE_IN_FILE, MAGNITUDE): value
        for name, value in tensors.items()
    }


def _mismatch(file: Path, components: Components, reason: str) -> InputError:
    return InputError(
        f"{file} does not fit this {components.family.name} model: {reason}. Use the base model "
        "that the LoRA was trained on, or one of the same architecture"
    )
