"""What training may change: LoRA adapters (Hu et al. 2022), new ones or those of an earlier file,
or the network itself. `saving.py` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from latent_robust.core import derive_seed
from latent_robust.errors import InputError, did_you_mean

from .components import Components
from .quiet import quiet_libraries

ADAPTER = "default"
MAGNITUDE = "lora_magnitude_vector"
MAGNITUDE_IN_FILE = f"{MAGNITUDE}.weight"  # of text encoders: the only name transformers 5 reads
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
# Names of layers in all families; those that a network has are taken. Not among them: `proj_out` of
# FLUX's single blocks, because peft could not tell it from the network's last layer.
PRESETS = {
    "attention": (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ),
    "mlp": (
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        "proj_mlp",
    ),
}


def add_lora(
    components: Components,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    dora: bool = False,
    text_encoder: bool = False,
    seed: int = 0,
) -> None:
    """Freeze everything and add trainable adapters, in float32, that change nothing yet (B = 0).

    alpha: what they add is scaled by alpha / rank. targets: names of PRESETS, or how the names of
    layers end, such as "attn2.to_k"; by default the family's own, which are attention's (for FLUX
    the feed-forward layers, too). text_encoder: adapt the attention of the CLIP text encoders. The
    first values are a function of `seed`. InputError for targets that no layer answers to."""
    _check(rank, alpha, dropout)
    freeze(components)
    wanted = {components.family.network_name: _layers(components, targets)}
    if text_encoder:
        wanted |= dict.fromkeys(_clip_encoders(components), TEXT_TARGETS)
    for name, ends in wanted.items():
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_dora=dora,
            target_modules=list(ends),
            init_lora_weights="gaussian",
        )
        part = getattr(components.pipeline, name)
        with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, from the global state
            torch.default_generator.manual_seed(derive_seed(seed, "lora", name))
            part.add_adapter(config, ADAPTER)
        cast_training_params(part)


def unfreeze_network(components: Components) -> None:
    """Full fine-tuning: the network itself is trained, in float32; all else is frozen."""
    freeze(components)
    components.network.requires_grad_(True)
    cast_training_params(components.network)


def freeze(components: Components) -> None:
    for part in components.pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)


def adapted_parts(components: Components) -> dict[str, nn.Module]:
    """The network and the text encoders that carry adapters, by their names in the pipeline."""
    parts = {components.family.network_name: components.network, **components.text_encoders}
    return {n: part for n, part in parts.items() if ADAPTER in getattr(part, "peft_config", {})}


def lora_parameters(components: Components) -> list[nn.Parameter]:
    parts = adapted_parts(components).values()
    return [p for part in parts for p in part.parameters() if p.requires_grad]


def load_lora(components: Components, file: str | Path) -> None:
    """Instead of `add_lora`: adapters as a file has them, in diffusers' or kohya's format; frozen
    is everything else. InputError if it is damaged, empty or for another base."""
    file = Path(file)
    _check_readable(file)
    freeze(components)
    where = {"pretrained_model_name_or_path_or_dict": file.parent, "weight_name": file.name}
    try:
        with quiet_libraries():
            stored = _stored(components, components.pipeline.lora_state_dict(**where))
            components.pipeline.load_lora_weights(**where, adapter_name=ADAPTER)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _unfit(file, components, shorten(str(error), 200)) from error
    for part in adapted_parts(components).values():
        for key, parameter in part.named_parameters():
            parameter.requires_grad_(f".{ADAPTER}" in key)
        cast_training_params(part)
    loaded = {
        f"{name}.{key}": value
        for name, part in adapted_parts(components).items()
        for key, value in get_peft_model_state_dict(part, adapter_name=ADAPTER).items()
    }
    # Libraries only warn of what is missing or left over, and begin with random values.
    if stray := sorted(loaded.keys() ^ stored.keys()):
        where = "file" if stray[0] in stored else "model"
        raise _unfit(file, components, f"only the {where} has {stray[0]!r}")
    for name, value in loaded.items():
        if not torch.allclose(value, stored[name].to(value), rtol=0.01, atol=1e-7):
            raise _unfit(file, components, f"{name!r} was not read as it is stored")
        value.copy_(stored[name])  # until here it was rounded to the dtype of the model


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


def _stored(components: Components, found: Any) -> dict[str, Tensor]:
    """found: what `lora_state_dict` gave.  =>  its tensors as peft names them in this model,
    `unet.….lora_A.weight`."""
    tensors = found[0] if isinstance(found, tuple) else found
    return {
        name: value
        for part in {key.partition(".")[0] for key in tensors}
        for name, value in _peft_names(part, tensors, components).items()
    }


def _peft_names(part: str, stored: dict[str, Tensor], components: Components) -> dict[str, Tensor]:
    """The tensors of one part, as peft names them in this model."""
    mine = {k.removeprefix(f"{part}."): v for k, v in stored.items() if k.startswith(f"{part}.")}
    if part in components.text_encoders:
        mine = convert_state_dict_to_peft(convert_state_dict_to_diffusers(mine))
        if not hasattr(components.text_encoders[part], "text_model"):
            mine = {key.removeprefix("text_model."): value for key, value in mine.items()}
    else:
        mine = convert_unet_state_dict_to_peft(mine)
    return {f"{part}.{key.replace(MAGNITUDE_IN_FILE, MAGNITUDE)}": v for key, v in mine.items()}


def _unfit(file: Path, components: Components, reason: str) -> InputError:
    return InputError(
        f"{file} does not fit this {components.family.name} model: {reason}. A LoRA needs the base "
        "that it was trained on, or one of the same architecture"
    )


def _check(rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise InputError(f"`rank` must be at least 1, got {rank}")
    if alpha <= 0:
        raise InputError(f"`alpha` must be > 0, got {alpha}; the rank is the usual choice")
    if not 0 <= dropout < 1:
        raise InputError(f"`dropout` must lie in [0, 1), got {dropout}")


def _clip_encoders(components: Components) -> dict[str, nn.Module]:
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    return {n: e for n, e in components.text_encoders.items() if isinstance(e, kinds)}


def _layers(components: Components, targets: Sequence[str] | None) -> list[str]:
    """=>  ends of layer names, as peft matches them; each fits a layer."""
    layers = [
        name
        for name, module in components.network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    found: list[str] = []
    for target in components.family.default_targets if targets is None else targets:
        ends = [
            end
            for end in PRESETS.get(target, (target,))
            if any(f".{layer}".endswith(f".{end}") for layer in layers)
        ]
        if not ends:
            names = {".".join(layer.split(".")[-n:]) for layer in layers for n in (1, 2, 4)}
            raise InputError(
                f"no layer of this {components.family.name} network is called "
                f"{target!r}{did_you_mean(target, sorted(names.union(PRESETS)))}; give a preset "
                f"({', '.join(PRESETS)}) or how names of its layers end, as {layers[-1]!r} does"
            )
        found += ends
    return found
