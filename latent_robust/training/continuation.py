"""From a run to its continuation, or to another that starts from it: what they must share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from latent_robust.core import REGULARIZED
from latent_robust.errors import InputError

from .checkpoint import Checkpoint, load_checkpoint, load_latest, set_aside_later
from .config import TrainConfig, regularized_among
from .loop import Trainer
from .options import Config, parse_options, peek
from .state import compare, differences, restore

# Settings that may differ between a run and its continuation; everything else must agree.
FREE = {
    "config", "out", "resume", "device", "offline", "dry_run", "workers", "steps", "beside",
    "log_every", "checkpoint_every", "keep_checkpoints", "sampler", "sampling_steps", "clip",
    "stop_at", "samples", "features", "weights", "reference", "max_bad_fraction",
    "prompts", "guidance", "clip_score", "cache_dir",
}  # fmt: skip

# Those of the regularizer.
REGULARIZER = {"weight", "band", "attack", "every"}

# Settings that may be left open, and hold what was found when the run began.
RESOLVED = {"band": "auto", "weight": "auto", "resolution": None}


def saved_options(argv: list[str]) -> list[str]:
    """Where `argv` names a run to resume and nothing else of it: that run's configuration, and
    its directory if `argv` names none, as options."""
    given = peek(argv, "resume", "out", "config")
    if given.resume is None or given.config:
        return []
    run = None if given.resume == "auto" else run_of(Path(given.resume))
    if given.out:
        run = run_of(Path(given.out)) or run
        options = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
        if not all(option.removeprefix("no-").replace("-", "_") in FREE for option in options):
            return []  # the whole command, or a part of another
    if run is None:
        return []
    return ["--config", str(run / "config.yaml"), *([] if given.out else ["--out", str(run)])]


def run_of(path: Path) -> Path | None:
    """path: a run, or a checkpoint of it."""
    run = path.parent.parent if (path / "manifest.json").exists() else path
    return run if (run / "config.yaml").exists() else None


def configure_continuation(config: Config, argv: list[str], out: Path, *, prog: str) -> Config:
    """The run's own configuration under today's options. InputError if these change what a
    continuation must share with what there is.

    config: what `argv` says by itself. If that is the run, its command was repeated in full, and
    must not be applied to its own result: `low_memory` would divide the batch once more."""
    file = ["--config", str(out / "config.yaml")]
    base = file if not any(word.startswith("--config") for word in argv) else []
    saved = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    based = _fill_in(parse_options(type(config), [*base, *argv], prog=prog), saved)
    repeated = _fill_in(config, saved)
    there, here = saved, repeated.model_dump(mode="json")
    if _shared_by_all(here, there) == _shared_by_all(there, here):
        return repeated.model_copy(
            update={key: getattr(based, key) for key in FREE & vars(based).keys()}
        )
    here = based.model_dump(mode="json")
    compare(_shared_by_all(there, here), _shared_by_all(here, there), type(config))
    return based


def _shared_by_all(settings: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What `settings` must share with `other`, for all of the runs that make them up."""
    unused = set() if all(map(_regularizes, (settings, other))) else REGULARIZER
    return _without(settings, FREE | unused)


def _regularizes(settings: dict[str, Any]) -> bool:
    names = ("objective", "beside", "judge")
    return bool(regularized_among(*(settings.get(name) for name in names)))


def _fill_in(config: Config, saved: dict[str, Any]) -> Config:
    found = {
        key: saved[key]
        for key, open_value in RESOLVED.items()
        if key in saved and getattr(config, key) == open_value
    }
    return config.model_copy(update=found)


def identity(config: TrainConfig, data_fingerprint: str, processes: int) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes from it."""
    settings = _shared_by_one(config.model_dump(mode="json"))
    if config.objective == "ambient" and config.levels is not None:
        settings["levels fingerprint"] = hashlib.sha256(config.levels.read_bytes()).hexdigest()
    return {**settings, "data fingerprint": data_fingerprint, "processes": processes}


def _shared_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """What a run must share with its continuation, whatever is trained besides. The regularizer's
    settings are none of it where it is not used: it may come with a `beside` that is added."""
    unused = set() if settings.get("objective") in REGULARIZED else REGULARIZER
    return _without(settings, FREE | unused)


def _without(settings: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def refuse_another(run: Path, config: Config, names: Sequence[str]) -> None:
    """InputError if there is no run, or it has other settings of these `names` than `config`, whose
    network can therefore not start from the run's."""
    if not (run / "config.yaml").exists():
        raise InputError(f"training cannot start from {run}: there is no run in it")
    there = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    here = config.model_dump(mode="json")
    there, here = ({name: s[name] for name in names if name in s} for s in (there, here))
    found = {name: was for name, was, _ in differences(there, here, type(config))}
    if found:
        other = "; ".join(f"{name}: {found[name]!r} there" for name in names if name in found)
        raise InputError(
            f"training cannot start from {run} ({other}): give the same settings, or another --init"
        )


def saved(wanted: str | None, out: Path) -> Checkpoint | None:
    """What a run in `out` goes on from, if there is anything. wanted: None, "auto" (newest valid
    checkpoint of `out`), a run directory or a checkpoint."""
    if wanted is None:
        return None
    path = out if wanted == "auto" else Path(wanted)
    if (path / "manifest.json").exists():
        return load_checkpoint(path)
    found = load_latest(path / "checkpoints")
    return None if found is None else found[0]


def resume(trainer: Trainer, wanted: str | None, out: Path) -> None:
    """wanted: as for `saved`; where there is nothing, "auto" is a fresh start, and all else an
    InputError."""
    if wanted is None:
        return
    checkpoint = saved(wanted, out)
    if checkpoint is not None:
        taken, steps = checkpoint.trainer["step"], trainer.config.steps
        if taken > steps:
            raise InputError(
                f"{taken:,} steps are taken already, more than --steps {steps:,}: give more steps, "
                f"or --resume an earlier one of {out / 'checkpoints'} with another --out"
            )
        restore(trainer, checkpoint)
    elif wanted != "auto" and Path(wanted).resolve() != out.resolve():
        raise InputError(f"--resume {wanted} holds no valid checkpoint")
    elif (out / "metrics.json").exists():  # else it may have stopped before its first checkpoint
        raise InputError(
            f"{out} is finished and its checkpoints are gone: it would be trained anew. Measure it "
            "with `latent-robust evaluate`, or take another --out"
        )
    if trainer.accelerator.is_main_process:
        set_aside_later(out / "checkpoints", trainer.step)
