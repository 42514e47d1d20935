"""Prepare a run: contaminate the data, recommend weight and band, encode everything.

All prompts that the text encoders must encode are collected here, before the first step, so that
the encoders can be unloaded afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from latent_robust.audit import DataRows, data_audit_of
from latent_robust.core import Levels, Weighting
from latent_robust.data import ContaminatedPairs, PairSet
from latent_robust.data.sources.scene_sources import scene_named
from latent_robust.data.sources.scenes import Scene
from latent_robust.evaluation.metrics import require_enough
from latent_robust.subset import evenly_spaced

from .base.components import Components
from .base.families import Conditions
from .cache.dataset import LatentCache, Uncached, build_cache
from .config import LatentConfig
from .data import (
    MeasuredNoise,
    cache_file,
    cache_folder,
    contaminated_pairs,
    open_clean,
    open_data,
    open_trusted,
    print_data,
    to_measure,
)
from .levels import choose_levels, choose_tags, measured_noise
from .memoize import memoize_json
from .spectrum import VERSION, recommend_latents
from .validation_loss import split_held_out

PROMPTS = 4  # generated at every checkpoint
VALIDATION_PAIRS = 256  # at most; each is evaluated eight times at every checkpoint


@dataclass
class Prompts:
    """Captions to generate images for. fixed: encode them only once, for all models of a run; False
    if the text encoders are trained."""

    captions: list[str]
    fixed: bool
    _encoded: Conditions | None = field(default=None, repr=False)

    def conditions(self, components: Components) -> Conditions | None:
        """Text conditions, each (N, ...); None without captions."""
        if not self.captions:
            return None
        if self._encoded is None or not self.fixed:
            self._encoded = components.encode_text(self.captions)
        return self._encoded


@dataclass
class Validation:
    """The pairs of the validation loss. dataset: encoded pairs; indices: those that are used;
    captions: of all pairs of the dataset, by index."""

    dataset: LatentCache | Uncached
    indices: list[int]
    captions: list[str]


@dataclass
class Preparation:
    """Data and settings that all runs of a command share.

    pairs, dataset: the contaminated pairs, and the same encoded; captions: of `pairs`, by index.
    train_indices: of the pairs to train on. train_pairs: `pairs` as squares, for grids and metrics.
    reference: clean pairs to measure against, as squares; None if there are none.
    prompts: of the images at checkpoints. metric_prompts: of the images for the metrics.
    scenes: what `metric_prompts` ask for; None unless the data are the demo's.
    weighting: "weight" and "band", recommended where they were not given; {} if nothing was open.
    levels: of each pair's latents; None if no objective takes any.
    tags: words for each pair's dirt, with --tag-dirt. found: what --audit says about the pairs.
    noise: of the pairs, if they will be audited."""

    pairs: ContaminatedPairs
    dataset: LatentCache | Uncached
    captions: list[str]
    train_indices: list[int]
    train_pairs: ContaminatedPairs
    reference: ContaminatedPairs | None
    validation: Validation
    prompts: Prompts
    metric_prompts: Prompts
    scenes: list[Scene] | None
    weighting: dict[str, float | list[float]]
    levels: Levels | None
    tags: list[str] | None
    found: DataRows | None
    noise: MeasuredNoise | None


def prepare(
    config: LatentConfig, components: Components, out: Path, accelerator: Accelerator
) -> Preparation:
    """Prepare the data of a run and print what was found. Called on all ranks.

    InputError for data that cannot be used."""
    say = print if accelerator.is_main_process else _silent
    contaminate = partial(contaminated_pairs, config, components)
    source, trusted = open_trusted(config, open_data(config, out))
    print_data(config, source, say)
    pairs = contaminate(source, config.contamination, trusted=trusted)
    reference = open_clean(config, source, pairs, out)
    require_enough(config.features, config.samples, pairs, reference)
    found = data_audit_of(pairs, config.audit)
    if found is not None:
        say(f"{config.audit}: {found.summary()}")
    tags = choose_tags(config, pairs, found)
    weighting = _choose_weighting(config, components, pairs, out, accelerator, say)
    levels = choose_levels(config, components, pairs, found)
    if cut := components.cut_captions(source.captions):
        say(f"captions longer than the text encoder's limit, whose ends are cut: {len(cut):,}")

    train_indices, held_out = split_held_out(len(pairs), config.held_out, config.seed)
    if found is not None:
        train_indices = [index for index in train_indices if not found.left_out[index]]
    encode = partial(_encode, config, components, out=out, accelerator=accelerator, say=say)
    dataset = encode(pairs, tags)
    if config.reference is None:
        validation = _validate_on_held_out(pairs, dataset, held_out)
    else:
        validation = _validate_on_reference(reference, contaminate, encode)
    prompts, metric_prompts, scenes = _choose_prompts(config, source, reference, held_out)
    return Preparation(
        pairs=pairs,
        dataset=dataset,
        captions=_captions(pairs),
        train_indices=train_indices,
        reference=None if reference is None else contaminate(reference, "none", buckets=False),
        train_pairs=_squares(config, contaminate, source, pairs),
        validation=validation,
        prompts=prompts,
        metric_prompts=metric_prompts,
        scenes=scenes,
        weighting=weighting,
        levels=levels,
        tags=tags,
        found=found,
        noise=measured_noise(config, components, pairs, out, accelerator),
    )


# --------------------------------------------------------------------------- weight and band


def _choose_weighting(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    out: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> dict[str, float | list[float]]:
    """=>  "weight" and "band", recommended where they were not given; {} if nothing was open.

    The main process computes them for all ranks: rounding must not give ranks different weights."""
    given = config.given_weighting
    if given is None:
        return {}
    result = [None]
    if accelerator.is_main_process:
        inputs = [VERSION, components.identity, components.process.parameterization]
        inputs += [config.forecast_attack, given, pairs.fingerprint()]
        compute = partial(_recommend, config, components, pairs, given)
        result = [memoize_json(cache_file(config, out, "recommended.json"), inputs, compute)]
    result = broadcast_object_list(result)[0]
    weighting = {**result["settings"], **given}
    say(f"{result['summary']}\n{Weighting('band', **weighting)}")
    if weighting["weight"] == 0 and "weight" not in given:
        say("the regularizer stays off unless --weight and --band say otherwise")
    return weighting


def _recommend(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    given: dict[str, float | list[float]],
) -> dict[str, Any]:
    """=>  "settings" and "summary" of the recommendation, as JSON."""
    samples, left = to_measure(pairs)
    recommendation = recommend_latents(
        samples,
        components,
        config.forecast_attack,
        left=left,
        batch=config.batch_size,
        **given,
    )
    return {"settings": recommendation.settings(), "summary": recommendation.summary()}


# ---------------------------------------------------------- encoded pairs, squares and prompts


def _encode(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    tags: Sequence[str] | None = None,
    *,
    out: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> LatentCache | Uncached:
    folder = cache_folder(config, out)
    if folder is None:
        return Uncached(pairs, components, tags)
    cache = build_cache(
        pairs,
        components,
        folder,
        batch_size=config.batch_size,
        accelerator=accelerator,
        tags=tags,
    )
    say(cache.summary)
    return cache


def _validate_on_held_out(
    pairs: ContaminatedPairs, dataset: LatentCache | Uncached, held_out: list[int]
) -> Validation:
    indices = [held_out[i] for i in evenly_spaced(len(held_out), VALIDATION_PAIRS)]
    return Validation(dataset, indices, _captions(pairs))


def _validate_on_reference(
    reference: PairSet,
    contaminate: Callable[..., ContaminatedPairs],
    encode: Callable[[ContaminatedPairs], LatentCache | Uncached],
) -> Validation:
    """Only the pairs that are used are encoded."""
    selected = reference.select(evenly_spaced(len(reference), VALIDATION_PAIRS))
    pairs = contaminate(selected, "none")
    return Validation(encode(pairs), list(range(len(pairs))), _captions(pairs))


def _squares(
    config: LatentConfig,
    contaminate: Callable[..., ContaminatedPairs],
    source: PairSet,
    pairs: ContaminatedPairs,
) -> ContaminatedPairs:
    """`pairs` as squares. If they are squares already, the same object: poison and outliers are
    expensive and must not be computed twice."""
    if not config.buckets:
        return pairs
    return contaminate(source, config.contamination, buckets=False, trusted=pairs.trusted)


def _choose_prompts(
    config: LatentConfig, source: PairSet, reference: PairSet | None, held_out: list[int]
) -> tuple[Prompts, Prompts, list[Scene] | None]:
    """=>  the prompts of checkpoints, those of the metrics, and the latter's scenes.

    By default the prompts of checkpoints are captions of held-out pairs, if there are any."""
    clean = reference or source
    chosen = evenly_spaced(len(clean.captions), config.samples)
    metric_prompts = [clean.captions[i] for i in chosen]
    prompts = config.prompts
    if prompts is None:
        use_held_out = held_out and config.reference is None
        captions = [clean.captions[i] for i in held_out] if use_held_out else clean.captions
        prompts = [captions[i] for i in evenly_spaced(len(captions), PROMPTS)]
    fixed = not config.text_encoder
    scenes = None
    if clean.spec == "scenes":
        scenes = [scene_named(clean.name(i)) for i in chosen]
    return Prompts(list(prompts), fixed), Prompts(metric_prompts, fixed), scenes


def _captions(pairs: ContaminatedPairs) -> list[str]:
    return [pairs.caption(index) for index in range(len(pairs))]


def _silent(*_: object) -> None:
    pass
