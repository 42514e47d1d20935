"""The runs that a command trains: a baseline to compare with, an auditor, and the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from latent_robust.core.registry import OBJECTIVES, facts_of

from .config import TrainConfig
from .options import validate

SomeTrainConfig = TypeVar("SomeTrainConfig", bound=TrainConfig)

# An auditor that needs no training: the pretrained model, unchanged.
BASE = "base"


def plan_runs(config: SomeTrainConfig, out: Path) -> list[tuple[SomeTrainConfig, Path]]:
    """=>  (configuration, directory) of each run, in training order.

    First `compare_with`, then the auditor of an audited run, last the run itself. Raises InputError
    if an objective does not go with the other settings.
    """
    auditor = config.auditor_run if config.facts.needs_audit else None
    runs = []
    for objective in dict.fromkeys([config.compare_with, auditor]):
        if objective is None or objective == BASE:
            continue
        earlier_round = auditor == objective == config.objective
        if earlier_round or objective != config.objective:
            part = validate(type(config), _settings_of_part(config, objective, earlier_round))
            runs += plan_runs(part, out / objective)  # an audited part has an auditor of its own
    return [*runs, (config, out)]


def _settings_of_part(config: TrainConfig, objective: str, earlier_round: bool) -> dict:
    """The settings of the run, without those that `objective` does not take."""
    facts = OBJECTIVES[objective]
    settings = {**config.model_dump(), "objective": objective, "compare_with": None}
    settings["resume"] = config.resume and "auto"
    if not facts.needs_levels:
        fields = type(config).model_fields
        dirty = [name for name in ("drop_noisy", "tag_dirt") if name in fields]
        settings.update({name: fields[name].default for name in dirty})
    if not facts.takes_levels:
        settings["levels"] = None
    if earlier_round:
        settings["rounds"] -= 1
    if "rounds" in settings and not facts.needs_audit:
        settings["rounds"] = 1
    return settings


def without_repetition(
    runs: list[tuple[SomeTrainConfig, Path]],
) -> list[tuple[SomeTrainConfig, Path]]:
    """The runs, without a baseline that would repeat the run itself: at weight 0 a regularized
    objective is plain training, bit for bit."""
    config, _ = runs[-1]
    off = config.facts.regularized and config.weight == 0
    plain = facts_of(config.compare_with).plain
    return runs[-1:] if off and plain else runs


def describe_schedule(config: TrainConfig) -> str:
    """The objectives in training order, e.g. "ddpm, then robust-adversarial"."""
    return ", then ".join(part.objective for part, _ in plan_runs(config, Path()))
