"""Finished runs of `finetune-latent`: load them, generate with them, audit their data.

The commands use `generate`, `audit`, `clean_images` and GENERATION_OPTIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from latent_robust.audit import (
    Audit,
    audit_by_trusted,
    audit_captions,
    audit_samples,
    noisy_views,
)
from latent_robust.audit.scoring import BATCH
from latent_robust.audit.spectrum import CLEAN
from latent_robust.data import (
    ContaminatedPairs,
    PairSet,
    open_pairs,
    open_reference,
)
from latent_robust.errors import InputError
from latent_robust.subset import evenly_spaced
from latent_robust.training.continuation import refuse_another

from .base.components import Components, load_components
from .base.folder import open_part
from .cache.dataset import Uncached
from .config import LatentConfig
from .data import MeasuredNoise, contaminated_pairs, measure_noise, open_trusted, select_images
from .eval_mode import evaluation_mode
from .lora.files import load_lora, start_from_lora
from .precision import load_dtypes
from .sampling import generate_images
from .task import EncodedPairs

# Pixels of the images that are audited at a time: eight images of 512 x 512.
PIXELS = 8 * 512**2

# Arguments of `generate` besides those that every kind of run has.
GENERATION_OPTIONS = frozenset({"prompt", "guidance"})

# The settings that determine which weights a run trains.
ADAPTER_FIELDS = ("lora", "model", "rank", "alpha", "targets", "dora", "text_encoder")


def generate(
    run: Path,
    config: dict[str, Any],
    count: int,
    *,
    prompt: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    offline: bool = False,
) -> Tensor:
    """Generate images with a finished run.  =>  (count, 3, resolution, resolution) in [-1, 1].

    config: the run's; prompt: used in turn, by default evenly spaced captions of the run's
    reference, or of its data if it has none; steps, guidance: by default the run's. InputError if
    the run has not finished.
    """
    components = load_finished(run, config, device=device, offline=offline)
    captions = list(prompt or ()) or _captions(config, count, offline)
    side = config["resolution"]
    return generate_images(
        components,
        components.encode_text(list(islice(cycle(captions), count))),
        empty=components.empty_text(),
        size=(side, side),
        steps=steps or config["sampling_steps"],
        guidance=config["guidance"] if guidance is None else guidance,
        seed=seed,
    )


def load_finished(run: Path, config: dict[str, Any], *, device: str, offline: bool) -> Components:
    """The run's base model with the trained weights, in the precision of training.

    InputError if the run has not finished."""
    precision = config["mixed_precision"]
    if device == "cpu" and precision == "fp16":
        precision = "no"
    components = load_components(
        config["model"], device=device, offline=offline, **load_dtypes(config["lora"], precision)
    )
    weights = _trained_weights(run, config["lora"], components)
    if config["lora"]:
        load_lora(components, weights)
    else:
        network = open_part(type(components.network), weights, torch.float32)
        setattr(components.pipeline, components.family.network_name, network.to(device).eval())
    return components


def start_from(components: Components, config: LatentConfig, run: Path) -> None:
    """Copy the trained weights of a finished run into components that were made trainable in the
    same way. InputError as `check_compatible`."""
    weights = check_compatible(components, config, run)
    if config.lora:
        start_from_lora(components, weights)
    else:
        network = open_part(type(components.network), weights, torch.float32)
        components.network.load_state_dict(network.state_dict())


def check_compatible(components: Components, config: LatentConfig, run: Path) -> Path:
    """=>  the file or folder of a run's trained weights. InputError if the run has not finished, or
    trained other weights than `config` does."""
    refuse_another(run, config, ADAPTER_FIELDS)
    return _trained_weights(run, config.lora, components)


def _trained_weights(run: Path, lora: bool, components: Components) -> Path:
    file = run / (LORA_WEIGHT_NAME_SAFE if lora else components.family.network_name)
    if not file.exists():
        raise InputError(f"{run} has not finished: {file.name} is missing; resume it first")
    return file


def audit(
    run: Path, config: dict[str, Any], *, device: str, offline: bool
) -> tuple[Audit, ContaminatedPairs]:
    """Audit the training pairs of a finished run with its own model.
    =>  the audit, and the pairs. InputError if the run has not finished."""
    components = load_finished(run, config, device=device, offline=offline)
    settings = LatentConfig.model_validate({**config, "offline": offline})
    source, trusted = open_trusted(settings, _pairs(config, offline, config["data"]))
    pairs = contaminated_pairs(
        settings, components, source, settings.contamination, trusted=trusted
    )
    captions = [pairs.caption(index) for index in range(len(pairs))]
    result = audit_pairs(
        components,
        Uncached(pairs, components),
        pairs,
        captions if settings.text_encoder else None,
        noise=measure_noise(components, pairs),
        seed=settings.seed,
        check_captions=settings.check_captions,
    )
    return result, pairs


def audit_pairs(
    components: Components,
    encoded: EncodedPairs,
    pairs: ContaminatedPairs,
    captions: Sequence[str] | None = None,
    *,
    noise: MeasuredNoise,
    seed: int = 0,
    check_captions: bool = False,
) -> Audit:
    """Audit pairs with a model: their noise and, by the trusted ones, other dirt.

    encoded: the same pairs in latents. captions: by index, needed if the text encoders were
    trained, because `encoded` holds the outputs of the untrained ones. noise: of the pairs."""
    buckets = encoded.buckets()
    firsts = [encoded.__getitems__(bucket[:1])["size"][0, -2:] for bucket in buckets]
    largest = max(int(height * width) for height, width in firsts)
    batch = min(BATCH, max(1, PIXELS // largest))
    with evaluation_mode(components.network):
        audit = audit_samples(
            lambda indices: _denoise_batch(components, encoded.__getitems__(indices), captions),
            components.process,
            buckets,
            noise_std=noise.latents,
            looks_clean=noise.images < CLEAN,
            batch=batch,
            seed=seed,
        )
        if check_captions:
            found = audit_captions(
                partial(_denoise_with_others, components, encoded, captions),
                components.process,
                [pairs.caption(index) for index in range(len(pairs))],
                buckets,
                batch=batch,
                seed=seed,
            )
            audit = replace(audit, captions=found)
        if not pairs.trusted:
            return audit
        bucket_of = torch.zeros(len(pairs), dtype=torch.long)
        for number, bucket in enumerate(buckets):
            bucket_of[bucket] = number
        view = noisy_views(
            lambda indices: _denoise_without_captions(components, encoded, indices),
            components.process,
            components.network,
            seed,
            bucket_of,
            batch,
        )
        return audit_by_trusted(
            audit, pairs.trusted, view, lambda rows: map(pairs.sample, rows.tolist()), seed
        )


def _denoise_with_others(
    components: Components,
    encoded: EncodedPairs,
    captions: Sequence[str] | None,
    indices: Sequence[int],
    places: Tensor,
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """As `_denoise_batch`, where row i has the caption of row places[i]."""
    batch = encoded.__getitems__(indices)
    if captions is None:
        text = {key: value[places] for key, value in batch["text"].items()}
    else:
        text = components.encode_text([captions[indices[place]] for place in places.tolist()])
    return _denoise_batch(components, {**batch, "text": text}, None)


def _denoise_without_captions(
    components: Components, encoded: EncodedPairs, indices: Sequence[int]
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """As `_denoise_batch`, with the empty caption: a caption can be as wrong as an image."""
    batch = encoded.__getitems__(indices)
    text = {
        key: value.expand(len(indices), *value.shape[1:])
        for key, value in encoded.empty_text.items()
    }
    return _denoise_batch(components, {**batch, "text": text}, None)


def _denoise_batch(
    components: Components, batch: dict[str, Any], captions: Sequence[str] | None
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """=>  the latents (B, c, h, w) on the network's device, and their `denoise(noisy, t)`."""
    text = batch["text"]
    if captions is not None:
        text = components.encode_text([captions[index] for index in batch["index"].tolist()])
    denoise = components.family.denoiser(components.network, text, batch["size"])
    return batch["mean"].float().to(components.network.device), denoise


def clean_images(config: dict[str, Any], count: int, *, offline: bool) -> Tensor:
    """The images that the run is measured against: its reference, or its data before contamination.
    =>  (N, 3, resolution, resolution) in [-1, 1], N <= count."""
    side = config["resolution"]
    squares = ContaminatedPairs(_pairs(config, offline), [], 0, [(side, side)])
    return select_images(squares, squares.clean, count)


def _captions(config: dict[str, Any], count: int, offline: bool) -> list[str]:
    captions = _pairs(config, offline).captions
    return [captions[i] for i in evenly_spaced(len(captions), count)]


def _pairs(config: dict[str, Any], offline: bool, spec: str | None = None) -> PairSet:
    """spec: the data to open; None for the run's reference, or its data if it has none."""
    if spec is None and config["reference"] is not None:
        return open_reference(
            config["reference"], config["caption_column"], max_bad_fraction=1.0, offline=offline
        )
    return open_pairs(
        spec or config["data"],
        caption_column=config["caption_column"],
        limit=config["limit"],
        max_bad_fraction=1.0,  # the run has already checked the limit
        offline=offline,
        folder_repeats=config["folder_repeats"],
    )
