"""Add LoRA adapters (Hu et al. 2022) to a model and find the trainable parameters.

files.py saves and loads them; verify.py checks the saved files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from latent_robust.core import derive_seed
from latent_robust.errors import InputError, did_you_mean
from latent_robust.latent.base.components import Components

ADAPTER = "default"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
# Layer names of all families; each network has some of them. `proj_out` of FLUX's single blocks is
# left out, because peft could not distinguish it from the network's last layer.
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
    """Freeze everything and add trainable adapters in float32. Their output is 0 at first (B = 0).

    alpha: the adapters' output is scaled by alpha / rank; targets: names of PRESETS, or ends of
    layer names, such as "attn2.to_k"; by default the family's own, which are the attention layers
    (for FLUX also the feed-forward layers); text_encoder: also adapt the attention of the CLIP text
    encoders; seed: determines the initial values. InputError for targets that match no layer."""
    freeze(components)
    layers = {components.family.network_name: adapted_layers(components, targets)}
    if text_encoder:
        layers |= _text_layers(components)
    for name, ends in layers.items():
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_dora=dora,
            target_modules=list(ends),
            init_lora_weights="gaussian",
        )
        part = getattr(components.pipeline, name)
        with torch.random.fork_rng(devices=[]):  # peft uses the global random state of the CPU
            torch.default_generator.manual_seed(derive_seed(seed, "lora", name))
            part.add_adapter(config, ADAPTER)
        cast_training_params(part)


def freeze(components: Components) -> None:
    """Switch off the gradients of all parts."""
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


def _text_layers(components: Components) -> dict[str, Sequence[str]]:
    """Ends of layer names by CLIP encoder, as peft matches them.

    A last layer without effect on the output is left out: its adapters would never get a gradient,
    and with several processes all would wait for it."""
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    layers_of: dict[str, Sequence[str]] = {}
    for name, encoder in components.text_encoders.items():
        if not isinstance(encoder, kinds):
            continue
        layers_of[name] = TEXT_TARGETS
        if name in components.family.last_layer_unused:
            last = f"layers.{encoder.config.num_hidden_layers - 1}."
            layers = (layer for layer, _ in encoder.named_modules() if last not in layer)
            layers_of[name] = [layer for layer in layers if layer.endswith(TEXT_TARGETS)]
    return layers_of


def adapted_layers(components: Components, targets: Sequence[str] | None) -> list[str]:
    """=>  ends of layer names, as peft matches them. targets: as `add_lora` takes them. InputError
    for a target that matches no layer."""
    layers = [
        name
        for name, module in components.network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    matched: list[str] = []
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
                f"({', '.join(PRESETS)}) or the end of a layer's name, such as {layers[-1]!r}"
            )
        matched += ends
    return matched
