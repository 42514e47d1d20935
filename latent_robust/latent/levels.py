"""What is known of the pairs' dirt before training: levels, words, and the noise in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latent_robust.audit import DataRows, read_levels
from latent_robust.core import Levels
from latent_robust.data import ContaminatedPairs
from latent_robust.errors import InputError

from .base.components import Components
from .config import TAGS_OF_AUDIT, LatentConfig
from .data import MeasuredNoise, cache_file, measure_noise, noise_gain
from .memoize import memoize_json
from .spectrum import VERSION

USUAL_LEVEL = 0.4  # of noise, at which the encoder's gain is measured where no level is known


def choose_levels(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    found: DataRows | None,
) -> Levels | None:
    """The two numbers of each pair, in units of its latents, from a file, the audit of the data or
    the manifest. Those of images are multiplied by the encoder's gain. None if no objective takes
    levels. InputError if the manifest has none."""
    if not any(facts.takes_levels for facts in config.trained):
        return None
    if config.levels is not None:
        return read_levels(config.levels, len(pairs), components.vae.config.latent_channels)
    if found is not None:
        own = found.levels
        finite = own.usable_from[(own.usable_from > 0) & own.usable_from.isfinite()]
        gain = noise_gain(components, pairs, float(finite.median()) if len(finite) else USUAL_LEVEL)
        least = own.usable_from * gain.square().mean().sqrt()
        return Levels(own.level[:, None] * gain, least, own.trusted)
    if config.drop_noisy:  # drops every contaminated pair, also those without a noise level
        return Levels.never_for(pairs.dirty())
    known = pairs.levels()
    if not known.any():
        raise InputError("objective ambient: no pair has Gaussian noise; give --levels FILE")
    median = known[known > 0].median().item()
    return Levels(known[:, None] * noise_gain(components, pairs, median))


def measured_noise(
    config: LatentConfig,
    components: Components,
    pairs: ContaminatedPairs,
    out: Path,
    accelerator: Accelerator,
) -> MeasuredNoise | None:
    """Only for the audit, which the main process does."""
    if not any(facts.needs_audit for facts in config.trained) or not accelerator.is_main_process:
        return None
    inputs = [VERSION, "noise", components.identity, pairs.fingerprint()]

    def compute() -> dict[str, Any]:
        return measure_noise(components, pairs)._asdict()

    return MeasuredNoise(**memoize_json(cache_file(config, out, "noise.json"), inputs, compute))


def choose_tags(
    config: LatentConfig, pairs: ContaminatedPairs, found: DataRows | None
) -> list[str] | None:
    """Those of the audit, or the words of --tag-dirt for all pairs."""
    if config.tag_dirt is None:
        return None
    if config.tag_dirt != TAGS_OF_AUDIT:
        return [config.tag_dirt] * len(pairs)
    assert found is not None  # the configuration refuses it otherwise
    return found.tags
