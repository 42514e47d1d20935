"""The run directory: which one a run uses, whether it may, and what its files say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_robust.errors import InputError
from latent_robust.files import write_atomically

from .config import TrainConfig
from .options import dump

# Settings on which the metrics of a trained network depend.
MEASUREMENT = (
    "samples", "sampler", "sampling_steps", "clip", "stop_at", "guidance", "features", "weights",
    "clip_score", "reference",
)  # fmt: skip

# The result of an audited run's audit.
AUDIT = "audit.jsonl"

# Files and folders that a run writes.
OUTPUTS = (
    AUDIT, "manifest.jsonl", "quarantine.jsonl", "log.jsonl", "metrics.json", "report.html",
    "samples", "checkpoints", "unet", "transformer", "scheduler",
    "pytorch_lora_weights.safetensors", "lora_kohya.safetensors",
)  # fmt: skip


def run_of(path: Path) -> Path | None:
    """path: a run directory or one of its checkpoints.  =>  the run directory; None if neither."""
    run = path.parent.parent if (path / "manifest.json").exists() else path
    return run if (run / "config.yaml").exists() else None


def choose_directory(config: TrainConfig, name: str, root: Path = Path("runs")) -> Path:
    """=>  --out; else the run that --resume names; else the first free root/NAME, root/NAME-2, ...

    Raises InputError for a directory that contains a run without --resume, or other files that this
    run would overwrite.
    """
    if config.out is not None:
        if config.out.exists() and not config.out.is_dir():
            raise InputError(f"--out {config.out} is a file; choose a directory")
        if config.out.exists() and Path(config.data).exists() and config.out.samefile(config.data):
            raise InputError(f"--out {config.out} is the folder of the data; choose another --out")
        _refuse_occupied(config, config.out)
        return config.out
    if config.resume not in (None, "auto"):
        run = run_of(Path(config.resume))
        if run is None:
            raise InputError(
                f"--resume {config.resume} is neither a run nor a checkpoint of one; give the "
                "directory of a run"
            )
        return run
    candidates = [root / name, *(root / f"{name}-{n}" for n in range(2, 10_000))]
    free = next(i for i, path in enumerate(candidates) if not path.exists())
    if config.resume == "auto":
        if free == 0:
            raise InputError(f"nothing to resume: {root / name} does not exist; give --out")
        return candidates[free - 1]
    return candidates[free]


def refuse_occupied(runs: Sequence[tuple[TrainConfig, Path]]) -> None:
    """Raises InputError if the directory of a baseline or auditor contains files of something else.

    runs: from `plan_runs`. `choose_directory` has checked the last one.
    """
    for config, folder in runs[:-1]:
        _refuse_occupied(config, folder)


def _refuse_occupied(config: TrainConfig, folder: Path) -> None:
    if (folder / "config.yaml").exists():
        if config.resume is None:
            raise InputError(f"{folder} already holds a run; add --resume, or choose another --out")
        return
    # An audit is written before config.yaml, and the run may have been stopped in between.
    own = {AUDIT} if config.resume is not None else set()
    foreign = [name for name in OUTPUTS if name not in own and (folder / name).exists()]
    if foreign:
        raise InputError(
            f"{folder} is not a run directory but contains {', '.join(foreign)}, which this run "
            "would overwrite; choose another --out"
        )


def write_config(config: TrainConfig, out: Path) -> None:
    write_atomically(out / "config.yaml", dump(config))


def is_finished(config: TrainConfig, out: Path) -> bool:
    """Whether all steps are taken and the metrics were measured with this configuration.

    False if --resume names a checkpoint, from which training continues.
    """
    resume = config.resume
    if resume not in (None, "auto") and (Path(resume) / "manifest.json").exists():
        return False
    facts, wanted = _metrics(out), measurement(config)
    as_wanted = wanted["samples"] == 0 or facts.get("measurement", wanted) == wanted
    return facts.get("steps") == config.steps and as_wanted


def timing(out: Path) -> dict[str, Any]:
    """Training time and cost from metrics.json, for a run that is only measured again."""
    facts = _metrics(out)
    return {key: facts[key] for key in ("seconds", "cost") if key in facts}


def measurement(config: TrainConfig) -> dict[str, Any]:
    """The settings of `config` on which metrics depend, as JSON values."""
    settings = config.model_dump(mode="json")
    return {name: settings[name] for name in MEASUREMENT if name in settings}


def _metrics(out: Path) -> dict[str, Any]:
    """The content of metrics.json; empty before the run is finished."""
    try:
        return json.loads((out / "metrics.json").read_text())
    except FileNotFoundError:
        return {}
