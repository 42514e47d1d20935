"""The runs that make up one: a baseline to compare with, an auditor, the run itself."""

from __future__ import annotations

from pathlib import Path

from latent_robust.core.registry import OBJECTIVES, facts_of

from .options import Config, validate

# An auditor that is not trained: the model that is fine-tuned, as it is.
BASE = "base"


def plan_runs(config: Config, out: Path) -> list[tuple[Config, Path]]:
    """=>  (configuration, directory) of each run, in the order in which they are trained:
    `compare_with`; the auditor of an audited run; last the run itself.

    Raises InputError if an objective does not go with the other settings.
    """
    auditor = config.auditor_run if config.facts.needs_audit else None
    runs = []
    for objective in dict.fromkeys([config.compare_with, auditor]):
        earlier_round = auditor == objective == config.objective
        if earlier_round or objective not in (None, BASE, config.objective):
            part = validate(type(config), _settings_of_part(config, objective, earlier_round))
            runs += plan_runs(part, out / objective)  # an audited part has an auditor of its own
    return [*runs, (config, out)]


def _settings_of_part(config: Config, objective: str, earlier_round: bool) -> dict:
    """The run's settings, less those that its objective does not take."""
    facts = OBJECTIVES[objective]
    settings = {**config.model_dump(), "objective": objective, "compare_with": None}
    settings["resume"] = config.resume and "auto"
    if not facts.needs_levels:
        settings["drop_noisy"] = False
    if not facts.takes_levels:
        settings["levels"] = None
    if earlier_round:
        settings["rounds"] -= 1
    if "rounds" in settings and not facts.needs_audit:
        settings["rounds"] = 1
    return settings


def without_repetition(runs: list[tuple[Config, Path]]) -> list[tuple[Config, Path]]:
    """The runs, without a baseline that would train the very same network as the run itself: with
    weight 0 a regularized objective is plain training, bit for bit."""
    config, _ = runs[-1]
    off = config.facts.regularized and config.weight == 0
    plain = facts_of(config.compare_with).plain
    return runs[-1:] if off and plain else runs


def describe_schedule(config: Config) -> str:
    """The objectives in the order in which they are trained, in words."""
    return ", then ".join(part.objective for part, _ in plan_runs(config, Path()))
