"""What a run must share with its continuation, and with another run that starts from it."""

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

# Settings that may differ between a run and its continuation. All others must be equal.
MAY_CHANGE_ON_RESUME = {
    "config", "out", "resume", "device", "offline", "dry_run", "workers", "steps", "compare_with",
    "log_every", "checkpoint_every", "keep_checkpoints", "sampler", "sampling_steps", "clip",
    "stop_at", "samples", "features", "weights", "reference", "max_bad_fraction",
    "prompts", "guidance", "clip_score", "cache_dir",
}  # fmt: skip

# Settings of the regularizer. They may differ if it is not used.
REGULARIZER = {"weight", "band", "attack", "penalty_every"}

# Settings that may be chosen from the data, and the value that says so. config.yaml has the result.
AUTO_FIELDS = {"band": "auto", "weight": "auto", "resolution": None}


def saved_options(argv: list[str]) -> list[str]:
    """=>  options that load the configuration of the run that `argv` resumes; may be empty.

    They include the run's directory unless `argv` has --out. Empty if `argv` resumes no run, has a
    --config of its own, or has --out and settings that a continuation must not change.
    """
    args = peek(argv, "resume", "out", "config")
    if args.resume is None or args.config:
        return []
    run = None if args.resume == "auto" else run_of(Path(args.resume))
    if args.out:
        run = run_of(Path(args.out)) or run
        if not given_options(argv) <= MAY_CHANGE_ON_RESUME:
            return []  # the whole command is repeated, or it is for another run
    if run is None:
        return []
    return ["--config", str(run / "config.yaml"), *([] if args.out else ["--out", str(run)])]


def configure_continuation(config: Config, argv: list[str], out: Path, *, prog: str) -> Config:
    """=>  the configuration of the run in `out`, with the options of `argv` that may change.

    config: what `argv` says without the run's configuration. If both are equal, the command was
    repeated in full. It must then not be applied to its own result: `low_memory` would divide the
    batch size again.

    Raises InputError if `argv` changes a setting that a continuation must share with its run.
    """
    file = ["--config", str(out / "config.yaml")]
    base = [] if any(word.startswith("--config") for word in argv) else file
    saved = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    based = _with_resolved(parse_options(type(config), [*base, *argv], prog=prog), saved)
    repeated = _with_resolved(config, saved)
    there, here = saved, repeated.model_dump(mode="json")
    if _shared_by_all(here, there) == _shared_by_all(there, here):
        return repeated.model_copy(
            update={key: getattr(based, key) for key in MAY_CHANGE_ON_RESUME & vars(based).keys()}
        )
    here = based.model_dump(mode="json")
    compare(_shared_by_all(there, here), _shared_by_all(here, there))
    return based


def _shared_by_all(settings: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The part of `settings` that must equal `other`, for all runs that the command trains."""
    unused = set() if all(map(_regularizes, (settings, other))) else REGULARIZER
    return _without(settings, MAY_CHANGE_ON_RESUME | unused)


def _regularizes(settings: dict[str, Any]) -> bool:
    objective, compare_with, auditor = map(settings.get, ("objective", "compare_with", "auditor"))
    return bool(regularized_among(objective, compare_with, auditor))


def _with_resolved(config: Config, saved: dict[str, Any]) -> Config:
    """Settings that `config` leaves to the data get the values that the saved run has."""
    resolved = {
        key: saved[key]
        for key, auto in AUTO_FIELDS.items()
        if key in saved and getattr(config, key) == auto
    }
    return config.model_copy(update=resolved)


def identity(config: TrainConfig, data_fingerprint: str, processes: int) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes from it, as JSON."""
    settings = _shared_by_one(config.model_dump(mode="json"))
    if config.facts.takes_levels and config.levels is not None:
        settings["levels fingerprint"] = hashlib.sha256(config.levels.read_bytes()).hexdigest()
    return {**settings, "data fingerprint": data_fingerprint, "processes": processes}


def _shared_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of `settings` that a single run must share with its continuation.

    The regularizer's settings count only if the run's own objective uses them: a `compare_with`
    that uses them may be added later.
    """
    unused = set() if facts_of(settings.get("objective")).regularized else REGULARIZER
    return _without(settings, MAY_CHANGE_ON_RESUME | unused)


def _without(settings: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def refuse_another(run: Path, config: Config, names: Sequence[str]) -> None:
    """Raises InputError if `run` is no run, or differs from `config` in a setting of `names`.

    names: settings that must be equal for the network of `config` to start from the run's weights.
    """
    if not (run / "config.yaml").exists():
        raise InputError(f"training cannot start from {run}: there is no run in it")
    there = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    here = config.model_dump(mode="json")
    there, here = ({name: s[name] for name in names if name in s} for s in (there, here))
    different = {name: was for name, was, _ in differences(there, here)}
    if different:
        text = "; ".join(
            f"{name}: {different[name]!r} there" for name in names if name in different
        )
        raise InputError(
            f"training cannot start from {run} ({text}): give the same settings, or another --init"
        )


def compare(saved: dict, current: dict) -> None:
    """Raises InputError that lists the differences, if there are any."""
    if different := differences(saved, current):
        raise InputError(
            "what was saved belongs to a different run:\n"
            + "\n".join(
                f"  {key}: {was!r} in the saved run, {now!r} now" for key, was, now in different
            )
            + "\nUse the same settings and data, or start a new run with another --out"
        )


def differences(saved: dict, current: dict) -> list[tuple[str, Any, Any]]:
    """=>  (name, value in the saved run, value now) of each setting that differs."""
    return [
        (key, saved.get(key), current.get(key))
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]
