"""The LoRA format of kohya-ss/sd-scripts, which ComfyUI and A1111 read, for Stable Diffusion 1, 2
and XL.

Programs read its DoRA differently. peft's magnitudes belong to the rows of a weight; A1111 applies
them to the columns, and ComfyUI divides by the norms of the base weight instead of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

# (family, predicts v) -> kohya's name of the base, and its name in Stability-AI/ModelSpec.
BASES = {
    ("sd1", False): ("sd_v1", "stable-diffusion-v1"),
    ("sd1", True): ("sd_v1_v", "stable-diffusion-v1"),
    ("sd2", False): ("sd_v2", "stable-diffusion-v2-512"),
    ("sd2", True): ("sd_v2_v", "stable-diffusion-v2-768-v"),
    ("sdxl", False): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    ("sdxl", True): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}


def to_kohya(layers: Mapping[str, LoraLayer], adapter: str, family: str) -> dict[str, Tensor]:
    """=>  the tensors of a kohya file. layers: by diffusers' names, `unet.…`,
    `text_encoder.text_model.…`, `text_encoder_2.…`; adapter: its name in peft.

    diffusers' own conversion is not used, because it writes the rank as alpha."""
    parts = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if family == "sdxl":
        parts["text_encoder"] = "lora_te1"
    tensors = {}
    for name, layer in layers.items():
        part, _, path = name.partition(".")
        key = f"{parts[part]}_{path.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = layer.lora_A[adapter].weight.detach().cpu()
        tensors[f"{key}.lora_up.weight"] = layer.lora_B[adapter].weight.detach().cpu()
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[adapter]))
    return tensors


def kohya_metadata(family: str, predicts_v: bool, rank: int, alpha: float) -> dict[str, str]:
    """=>  the metadata by which programs and model managers recognise the file and its base."""
    version, architecture = BASES[family, predicts_v]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
    }
