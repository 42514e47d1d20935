"""From a run to its continuation, or to another run that starts from it: what they must share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from latent_robust.core.registry import facts_of
from latent_robust.errors import InputError

from .config import TrainConfig, regularized_among
from .directory import run_of
from .options import Config, given_options, parse_options, peek

# Settings that may differ between a run and its continuation; everything else must agree.
MAY_CHANGE_ON_RESUME = {
    "config", "out", "resume", "device", "offline", "dry_run", "workers", "steps", "compare_with",
    "log_every", "checkpoint_every", "keep_checkpoints", "sampler", "sampling_steps", "clip",
    "stop_at", "samples", "features", "weights", "reference", "max_bad_fraction",
    "prompts", "guidance", "clip_score", "cache_dir",
}  # fmt: skip

# Settings of the regularizer. They do not bind a run that does not use it.
REGULARIZER = {"weight", "band", "attack", "penalty_every"}

# Settings that may be left open, with the value that says so. config.yaml holds what was found.
AUTO_FIELDS = {"band": "auto", "weight": "auto", "resolution": None}


def saved_options(argv: list[str]) -> list[str]:
    """If `argv` names a run to resume and nothing else of it: options that give that run's
    configuration, and its directory if `argv` names none."""
    given = peek(argv, "resume", "out", "config")
    if given.resume is None or given.config:
        return []
    run = None if given.resume == "auto" else run_of(Path(given.resume))
    if given.out:
        run = run_of(Path(given.out)) or run
        if not given_options(argv) <= MAY_CHANGE_ON_RESUME:
            return []  # the whole command repeated, or one for another run
    if run is None:
        return []
    return ["--config", str(run / "config.yaml"), *([] if given.out else ["--out", str(run)])]


def configure_continuation(config: Config, argv: list[str], out: Path, *, prog: str) -> Config:
    """The run's own configuration under today's options. Raises InputError if these change what a
    continuation must share with the run.

    config: what `argv` says by itself. If that equals the run, its command was repeated in full and
    must not be applied to its own result: `low_memory` would divide the batch once more."""
    file = ["--config", str(out / "config.yaml")]
    base = [] if any(word.startswith("--config") for word in argv) else file
    saved = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    based = _fill_in(parse_options(type(config), [*base, *argv], prog=prog), saved)
    repeated = _fill_in(config, saved)
    there, here = saved, repeated.model_dump(mode="json")
    if _shared_by_all(here, there) == _shared_by_all(there, here):
        return repeated.model_copy(
            update={key: getattr(based, key) for key in MAY_CHANGE_ON_RESUME & vars(based).keys()}
        )
    here = based.model_dump(mode="json")
    compare(_shared_by_all(there, here), _shared_by_all(here, there))
    return based


def _shared_by_all(settings: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What `settings` must share with `other`, for all of the runs that make them up."""
    unused = set() if all(map(_regularizes, (settings, other))) else REGULARIZER
    return _without(settings, MAY_CHANGE_ON_RESUME | unused)


def _regularizes(settings: dict[str, Any]) -> bool:
    names = ("objective", "compare_with", "auditor")
    return bool(regularized_among(*(settings.get(name) for name in names)))


def _fill_in(config: Config, saved: dict[str, Any]) -> Config:
    found = {
        key: saved[key]
        for key, open_value in AUTO_FIELDS.items()
        if key in saved and getattr(config, key) == open_value
    }
    return config.model_copy(update=found)


def identity(config: TrainConfig, data_fingerprint: str, processes: int) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes from it."""
    settings = _shared_by_one(config.model_dump(mode="json"))
    if config.facts.takes_levels and config.levels is not None:
        settings["levels fingerprint"] = hashlib.sha256(config.levels.read_bytes()).hexdigest()
    return {**settings, "data fingerprint": data_fingerprint, "processes": processes}


def _shared_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """What a run must share with its continuation, whatever else is trained. The regularizer's
    settings only if it is used: it may come with a `compare_with` that is added later."""
    unused = set() if facts_of(settings.get("objective")).regularized else REGULARIZER
    return _without(settings, MAY_CHANGE_ON_RESUME | unused)


def _without(settings: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def refuse_another(run: Path, config: Config, names: Sequence[str]) -> None:
    """Raises InputError if there is no run, or if it has other settings of these `names` than
    `config`, whose network can therefore not start from the run's."""
    if not (run / "config.yaml").exists():
        raise InputError(f"training cannot start from {run}: there is no run in it")
    there = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    here = config.model_dump(mode="json")
    there, here = ({name: s[name] for name in names if name in s} for s in (there, here))
    found = {name: was for name, was, _ in differences(there, here)}
    if found:
        other = "; ".join(f"{name}: {found[name]!r} there" for name in names if name in found)
        raise InputError(
            f"training cannot start from {run} ({other}): give the same settings, or another --init"
        )


def compare(saved: dict, current: dict) -> None:
    """Raises InputError that lists the differences, if there are any."""
    if found := differences(saved, current):
        raise InputError(
            "what was saved belongs to a different run:\n"
            + "\n".join(
                f"  {key}: {was!r} in the saved run, {now!r} now" for key, was, now in found
            )
            + "\nUse the same settings and data, or start a new run with another --out"
        )


def differences(saved: dict, current: dict) -> list[tuple[str, Any, Any]]:
    """=>  name, value in the saved run, value now, of the settings that differ."""
    return [
        (key, saved.get(key), current.get(key))
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]
