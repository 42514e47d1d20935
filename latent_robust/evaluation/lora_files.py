"""The LoRA files of a run, and how to load them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .runs import Run

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"
_USES = {
    DIFFUSERS: "for diffusers, see below",
    KOHYA: "for ComfyUI: copy it to models/loras; for A1111: to models/Lora",
}


@dataclass(frozen=True)
class LoraFiles:
    """files: (name, what it is for). snippet: Python that loads the LoRA in diffusers."""

    name: str
    files: list[tuple[str, str]]
    snippet: str


def lora_files(runs: Sequence[Run]) -> list[LoraFiles]:
    """Of the LoRA runs whose files are on disk."""
    results = []
    for run in runs:
        if not (run.config.get("lora") and run.directory):
            continue
        files = [
            (file, use + ("; verified: it reloads as trained" if _verified(run, file) else ""))
            for file, use in _USES.items()
            if (run.directory / file).is_file()
        ]
        if files:
            results.append(LoraFiles(run.name, files, _snippet(run)))
    return results


def _verified(run: Run, file: str) -> bool:
    return file in (run.metrics.get("verified") or {})


def _snippet(run: Run) -> str:
    model = str(run.config.get("model"))
    pipeline = run.metrics.get("pipeline", "DiffusionPipeline")
    if model == "demo":
        lines = [
            "from latent_robust.latent.base.demo_model import load_demo_pipeline",
            "pipeline = load_demo_pipeline()",
        ]
    else:
        loader = "from_single_file" if Path(model).suffix == ".safetensors" else "from_pretrained"
        lines = [
            f"from diffusers import {pipeline}",
            f"pipeline = {pipeline}.{loader}({_quoted(model)})",
        ]
    return "\n".join([*lines, f"pipeline.load_lora_weights({_quoted(str(run.directory))})"])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
