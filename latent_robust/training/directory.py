"""A run directory: where it is, whether it may be used, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_robust.errors import InputError
from latent_robust.files import write_atomically

from .config import TrainConfig
from .options import Config, dump

# The settings on which the metrics of a trained network depend.
MEASUREMENT = (
    "samples", "sampler", "sampling_steps", "clip", "stop_at", "guidance", "features", "weights",
    "clip_score", "reference",
)  # fmt: skip

# What the audit of an audited run found.
AUDIT = "audit.jsonl"

# What a run writes, and would overwrite.
OUTPUTS = (
    AUDIT, "manifest.jsonl", "quarantine.jsonl", "log.jsonl", "metrics.json", "report.html",
    "samples", "checkpoints", "unet", "transformer", "scheduler",
    "pytorch_lora_weights.safetensors", "lora_kohya.safetensors",
)  # fmt: skip


def run_of(path: Path) -> Path | None:
    """path: a run, or a checkpoint of it.  =>  the run; None if it is neither."""
    run = path.parent.parent if (path / "manifest.json").exists() else path
    return run if (run / "config.yaml").exists() else None


def choose_directory(config: TrainConfig, name: str, root: Path = Path("runs")) -> Path:
    """--out; or the run that --resume names; or runs/NAME, runs/NAME-2, ...

    Raises InputError for a directory that holds a run that is not to be resumed, or something else
    that a run would overwrite."""
    if config.out is not None:
        if config.out.exists() and not config.out.is_dir():
            raise InputError(f"--out {config.out} is a file; give a directory")
        if config.out.exists() and Path(config.data).exists() and config.out.samefile(config.data):
            raise InputError(f"--out {config.out} is the folder of the data; give another")
        _refuse_occupied(config, config.out)
        return config.out
    if config.resume not in (None, "auto"):
        run = run_of(Path(config.resume))
        if run is None:
            raise InputError(f"--resume {config.resume} is neither a run nor a checkpoint of one")
        return run
    candidates = [root / name, *(root / f"{name}-{n}" for n in range(2, 10_000))]
    free = next(i for i, path in enumerate(candidates) if not path.exists())
    if config.resume == "auto":
        if free == 0:
            raise InputError(f"nothing to resume: {root / name} does not exist; give --out")
        return candidates[free - 1]
    return candidates[free]


def refuse_occupied(runs: Sequence[tuple[Config, Path]]) -> None:
    """Raises InputError if the directory of a part holds something that is not this run's. runs: of
    `plan_runs`; the last one was checked by `choose_directory`."""
    for config, folder in runs[:-1]:
        _refuse_occupied(config, folder)


def _refuse_occupied(config: TrainConfig, folder: Path) -> None:
    if (folder / "config.yaml").exists():
        if config.resume is None:
            raise InputError(f"{folder} already holds a run; add --resume, or choose another --out")
        return
    # An audit is written before the run begins, and the run may have been stopped in between.
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
    """Whether nothing is left to do: all steps are taken, and the metrics were measured as this
    configuration says. Not if --resume names a checkpoint to train on from."""
    resume = config.resume
    if resume not in (None, "auto") and (Path(resume) / "manifest.json").exists():
        return False
    facts, wanted = _metrics(out), measurement(config)
    as_wanted = config.samples == 0 or facts.get("measurement", wanted) == wanted
    return facts.get("steps") == config.steps and as_wanted


def timing(out: Path) -> dict[str, Any]:
    """What metrics.json says about the time of training, for a run that is only measured again."""
    facts = _metrics(out)
    return {key: facts[key] for key in ("seconds", "cost") if key in facts}


def measurement(config: TrainConfig) -> dict[str, Any]:
    """The settings on which the metrics of a trained network depend, as JSON."""
    settings = config.model_dump(mode="json")
    return {name: settings[name] for name in MEASUREMENT if name in settings}


def _metrics(out: Path) -> dict[str, Any]:
    """Empty before the run is finished."""
    try:
        return json.loads((out / "metrics.json").read_text())
    except FileNotFoundError:
        return {}
