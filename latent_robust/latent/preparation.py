"""From a specification to encoded pairs: all that happens before the first step, and all of what
the text encoders are asked, so that they can be unloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from latent_robust.audit import read_levels
from latent_robust.core import Weighting
from latent_robust.data import (
    ContaminatedPairs,
    PairSet,
    make_buckets,
    open_pairs,
    open_reference,
    parse_contamination,
)
from latent_robust.data.images import SMALL
from latent_robust.data.sources.scene_sources import scene_named
from latent_robust.data.sources.scenes import Scene
from latent_robust.errors import InputError
from latent_robust.evaluation.metrics import REFERENCE, require_enough
from latent_robust.subset import evenly_spaced

from .base.components import Components
from .base.families import Conditions
from .cache.dataset import LatentCache, Uncached, build_cache
from .config import LatentConfig
from .memoize import memoize_json
from .spectrum import VERSION, encoder_gain, recommend_latents
from .validation_loss import split_held_out

# Images from which the noise and the spectrum of the latents are found: many where they are
# small, of which each says little.
LEAST_LOOKED_AT, MOST_LOOKED_AT, PIXELS_LOOKED_AT = 64, 256, 2**22
GAIN_IMAGES = 16
PROMPTS = 4  # drawn at every checkpoint
VALIDATED = 256  # pairs at most, each of which is looked at eight times at every checkpoint


@dataclass
class Prompts:
    """Captions to draw. fixed: encoded once, for all models of a run; text encoders that are
    trained are asked again each time."""

    captions: list[str]
    fixed: bool
    _encoded: Conditions | None = field(default=None, repr=False)

    def conditions(self, components: Components) -> Conditions | None:
        """Each (N, ...); None where there is nothing to draw."""
        if not self.captions:
            return None
        if self._encoded is None or not self.fixed:
            self._encoded = components.encode_text(self.captions)
        return self._encoded


@dataclass
class Preparation:
    """pairs: as they are trained on; training: indices of those that are; validation, validated:
    encoded pairs for the validation loss, and which of them; truth: clean pairs to measure against
    (None where nothing clean is known), as squares, and so is `seen`, what is trained on; prompts:
    drawn at checkpoints; measured: drawn at the end; scenes: what these ask for, where it is known
    (the demo's); levels: of the noise in each channel of a pair's latents, for `ambient`."""

    pairs: ContaminatedPairs
    dataset: LatentCache | Uncached
    training: list[int]
    validation: LatentCache | Uncached
    validated: list[int]
    captions: list[str]
    validation_captions: list[str]
    truth: ContaminatedPairs | None
    seen: ContaminatedPairs
    prompts: Prompts
    measured: Prompts
    scenes: list[Scene] | None
    weighting: dict[str, float | list[float]]
    levels: Tensor | None


def prepare(
    config: LatentConfig, components: Components, out: Path, accelerator: Accelerator
) -> Preparation:
    """Says aloud what it found. InputError for what cannot be used."""
    say = print if accelerator.is_main_process else _silent
    folder = cache_folder(config, out)
    known = None if folder is None else folder / "images.json"
    source = _open_data(config, known)
    say(f"{config.data}: {source.summary()}")
    for what, names in (
        ("without a caption", source.without_caption),
        ("captions without an image", source.without_image),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{what}: {shown}", file=sys.stderr)
    contaminate = partial(contaminated_pairs, config, components)
    pairs = contaminate(source, config.contamination)
    truth = None
    if config.reference is not None:
        truth = open_reference(
            config.reference,
            config.caption_column,
            max_bad_fraction=config.max_bad_fraction,
            offline=config.offline,
            known=known,
        )
    elif pairs.corruptions:
        truth = source
    require_enough(config.features, config.samples, pairs, truth)
    weighting = {}
    if (given := config.given_weighting) is not None:
        file = None if folder is None else folder / "recommended.json"
        facts = [VERSION, components.identity, components.process.parameterization]
        facts += [config.forecast_attack, given, pairs.fingerprint()]
        found = [None]
        if accelerator.is_main_process:  # for all: rounding must not give ranks different weights
            find = partial(_recommend, config, components, pairs, given)
            found = [memoize_json(file, facts, find)]
        found = broadcast_object_list(found)[0]
        weighting = {**found["settings"], **given}
        say(f"{found['summary']}\n{Weighting('band', **weighting)}")
        if weighting["weight"] == 0 and "weight" not in given:
            say("the regularizer stays off unless --weight and --band say otherwise")
    levels = None
    if any(facts.takes_levels for facts in config.trained):
        levels = _levels(config, components, pairs)
    cut = components.cut_captions(source.captions)
    if cut:
        say(f"captions longer than the text encoder reads, which cuts their ends: {len(cut):,}")

    training, held = split_held_out(len(pairs), config.held_out, config.seed)
    dataset = _encode(config, components, pairs, out, accelerator, say)
    validation, validated = dataset, [held[i] for i in evenly_spaced(len(held), VALIDATED)]
    if config.reference is not None:
        clean = contaminate(truth.pick(evenly_spaced(len(truth), VALIDATED)), "none")
        validation = _encode(config, components, clean, out, accelerator, say)
        validated = list(range(len(clean)))
    captions = (truth or source).captions
    drawn = evenly_spaced(len(captions), config.samples)
    prompts = config.prompts
    if prompts is None:
        known = [captions[i] for i in held] if held and config.reference is None else captions
        prompts = [known[i] for i in evenly_spaced(len(known), PROMPTS)]
    return Preparation(
        pairs=pairs,
        dataset=dataset,
        training=training,
        validation=validation,
        validated=validated,
        captions=_captions(pairs),
        validation_captions=_captions(pairs if config.reference is None else clean),
        truth=None if truth is None else contaminate(truth, "none", buckets=False),
        # What is expensive, poison and outliers, is not made twice where it is the same.
        seen=contaminate(source, config.contamination, buckets=False) if config.buckets else pairs,
        prompts=Prompts(list(prompts), fixed=not config.text_encoder),
        measured=Prompts([captions[i] for i in drawn], fixed=not config.text_encoder),
        scenes=_scenes(truth or source, drawn),
        weighting=weighting,
        levels=levels,
    )


def select_images(
    pairs: ContaminatedPairs, pick: Callable[[int], Tensor], limit: int = REFERENCE
) -> Tensor:
    """=>  (N, 3, side, side): at most `limit` evenly spaced ones, fewer if memory wants it.

    pick: `pairs.sample` or `pairs.clean`, of squares."""
    height, width = pairs.bucket_sizes[0]
    fitting = max(64, SMALL // (12 * height * width))
    return torch.stack([pick(i) for i in evenly_spaced(len(pairs), min(limit, fitting))])


def contaminated_pairs(
    config: LatentConfig,
    components: Components,
    pairs: PairSet,
    specs: str,
    *,
    buckets: bool | None = None,
) -> ContaminatedPairs:
    """At the run's resolution, with its seed; encoder-poison attacks its model. buckets: by default
    the run's."""
    sides = {} if (config.buckets if buckets is None else buckets) else {"max_ratio": 1.0}
    return ContaminatedPairs(
        pairs,
        parse_contamination(specs),
        config.seed,
        make_buckets(config.resolution, components.family.multiple, **sides),
        # The pairs outlive the network, and hold the VAE only if they need it.
        encode=_vae_alone(components).encode_means if "encoder-poison" in specs else None,
        offline=config.offline,
    )


def _vae_alone(components: Components) -> Components:
    return components.without(components.family.network_name, *components.text_encoders)


def _open_data(config: LatentConfig, known: Path | None) -> PairSet:
    return open_pairs(
        config.data,
        caption_column=config.caption_column,
        limit=config.limit,
        max_bad_fraction=config.max_bad_fraction,
        offline=config.offline,
        folder_repeats=config.folder_repeats,
        known=known,
    )


def _levels(config: LatentConfig, components: Components, pairs: ContaminatedPairs) -> Tensor:
    """Of each pair, in units of the latents: from a file, or the manifest's, carried over by the
    encoder's gain."""
    if config.levels is not None:
        return read_levels(config.levels, len(pairs), components.vae.config.latent_channels)
    if config.drop_noisy:  # what has no level is left out for its dirt all the same
        return pairs.dirty().float()
    levels = pairs.levels()
    if not levels.any():
        raise InputError("objective ambient: no pair has Gaussian noise; give --levels FILE")
    samples = of_one_size(pairs, pairs.clean, GAIN_IMAGES)
    return levels[:, None] * encoder_gain(samples, levels[levels > 0].median().item(), components)


def _recommend(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    given: dict[str, float | list[float]],
) -> dict[str, Any]:
    """=>  as JSON."""
    found = recommend_latents(
        of_one_size(pairs, pairs.sample),
        components,
        config.forecast_attack,
        batch=config.batch_size,
        **given,
    )
    return {"settings": found.settings(), "summary": found.summary()}


def of_one_size(
    pairs: ContaminatedPairs, pick: Callable[[int], Tensor], count: int | None = None
) -> Tensor:
    """=>  (N, 3, h, w): of the bucket that has the most pairs, evenly spaced. count: by default as
    many as say enough of a spectrum."""
    members = list(dict.fromkeys(max(pairs.buckets(), key=len)))
    height, width = pairs.bucket(members[0])
    if count is None:
        count = min(MOST_LOOKED_AT, max(LEAST_LOOKED_AT, PIXELS_LOOKED_AT // (height * width)))
    return torch.stack([pick(members[i]) for i in evenly_spaced(len(members), count)])


def _captions(pairs: ContaminatedPairs) -> list[str]:
    return [pairs.caption(index) for index in range(len(pairs))]


def _scenes(pairs: PairSet, indices: list[int]) -> list[Scene] | None:
    return [scene_named(pairs.name(i)) for i in indices] if pairs.spec == "scenes" else None


def cache_folder(config: LatentConfig, out: Path) -> Path | None:
    return (config.cache_dir or out / "cache") if config.cache else None


def _encode(config, components, pairs, out, accelerator, say) -> LatentCache | Uncached:
    folder = cache_folder(config, out)
    if folder is None:
        return Uncached(pairs, components)
    cache = build_cache(
        pairs, components, folder, batch_size=config.batch_size, accelerator=accelerator
    )
    say(cache.summary)
    return cache


def _silent(*_) -> None:
    pass
