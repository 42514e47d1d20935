"""The forms of `--model`, checked without loading anything, so that a typo is reported at once."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from latent_robust.errors import InputError

KNOWN_FAMILIES = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, and FLUX.1"
DEMO = "demo"
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
MODEL_FORMS = (
    "A model is a diffusers folder, a single .safetensors file, a name on the Hugging Face Hub "
    f"({KNOWN_FAMILIES}), or {DEMO}"
)


class ModelKind(StrEnum):
    DEMO = "demo"
    FOLDER = "folder"
    FILE = "file"
    HUB = "hub"


def model_kind(model: str) -> ModelKind:
    """The form of `model`. InputError for a path that does not exist, a folder that is not a
    diffusers folder, and a pickle."""
    if model == DEMO:
        return ModelKind.DEMO
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(
                f"{model} has no model_index.json, so it is not a diffusers folder. Give the "
                "folder that `save_pretrained` wrote, or a single .safetensors file"
            )
        return ModelKind.FOLDER
    if path.is_file():
        refuse_pickled_file(path)
        return ModelKind.FILE
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
    if not on_hub or path.suffix in {".safetensors", *PICKLES}:
        raise InputError(f"{model} does not exist. {MODEL_FORMS}")
    return ModelKind.HUB


def refuse_pickled_file(path: Path) -> None:
    """InputError for a pickle, with the command that converts it."""
    if path.suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run code when it is loaded. If you trust it, convert "
            'it once: python -c "import torch, safetensors.torch as s; d = torch.load('
            f"'{path}', weights_only=True); d = d.get('state_dict', d); s.save_file({{k: "
            f"v.clone() for k, v in d.items() if torch.is_tensor(v)}}, '{path.stem}.safetensors')\""
        )
