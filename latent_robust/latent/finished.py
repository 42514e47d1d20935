"""A finished run of finetune-latent: drawing from it, and what to measure it against."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from latent_robust.data import ContaminatedPairs, PairSet, open_pairs
from latent_robust.data.contaminated import spaced
from latent_robust.errors import InputError

from .checkpoint import open_part
from .components import Components, load_components
from .lora_files import load_lora
from .preparation import comparable
from .sampling import draw_pictures


def draw_from_run(
    run: Path,
    config: dict[str, Any],
    count: int,
    *,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    offline: bool = False,
) -> Tensor:
    """=>  (count, 3, resolution, resolution) in [-1, 1].

    config: the run's; prompts: in turn; by default evenly spaced captions of the run's clean
    pairs, else of its data. InputError when the run has not finished.
    """
    components = load_finished(run, config, device=device, offline=offline)
    captions = list(prompts or ()) or _captions(config, count, offline)
    side = config["resolution"]
    return draw_pictures(
        components,
        components.encode_text(list(islice(cycle(captions), count))),
        empty=components.empty_text(),
        size=(side, side),
        steps=steps or config["sampling_steps"],
        guidance=config["guidance"] if guidance is None else guidance,
        seed=seed,
    )


def load_finished(run: Path, config: dict[str, Any], *, device: str, offline: bool) -> Components:
    """The run's base model with what the run has learned."""
    components = load_components(config["model"], device=device, offline=offline)
    name = components.family.network_name
    learned = run / (LORA_WEIGHT_NAME_SAFE if config["lora"] else name)
    if not learned.exists():
        raise InputError(f"{run} has not finished: {learned.name} is missing; resume it first")
    if config["lora"]:
        load_lora(components, learned)
    else:
        network = open_part(type(components.network), learned, torch.float32)
        setattr(components.pipeline, name, network.to(device).eval())
    return components


def clean_pictures(config: dict[str, Any], count: int, *, offline: bool) -> Tensor:
    """What the run is measured against: at most `count`, (N, 3, resolution, resolution) in
    [-1, 1]. Its reference, or its data before contamination."""
    side = config["resolution"]
    squares = ContaminatedPairs(_pairs(config, offline), [], 0, [(side, side)])
    return comparable(squares, squares.clean, count)


def _captions(config: dict[str, Any], count: int, offline: bool) -> list[str]:
    captions = _pairs(config, offline).captions
    return [captions[i] for i in spaced(len(captions), count)]


def _pairs(config: dict[str, Any], offline: bool) -> PairSet:
    return open_pairs(
        config["reference"] or config["data"],
        caption_column=config["caption_column"],
        limit=config["limit"],
        max_bad_fraction=1.0,  # what was refused is known since the run
        offline=offline,
        folder_repeats=config["folder_repeats"],
    )
