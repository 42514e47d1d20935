"""A run directory: where it is, whether it may be used, where to resume from."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from latent_robust.errors import InputError
from latent_robust.files import write_atomically

from .checkpoint import load_checkpoint, load_latest, set_aside_later
from .config import TrainConfig
from .loop import Trainer
from .state import restore

# Settings that may differ between a run and its continuation; everything else must agree.
FREE = {
    "config", "out", "resume", "device", "offline", "dry_run", "workers", "steps", "beside",
    "log_every", "checkpoint_every", "keep_checkpoints", "sampler", "sampling_steps", "clip",
    "samples", "features", "weights", "reference", "max_bad_fraction",
}  # fmt: skip


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Raises InputError for a device that is not there, RuntimeError for a launch that would make
    every process believe that it is the only one."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.device, True):
        raise InputError(f"--device {config.device} is not available here; use --device auto")
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not available["cuda"]):
        raise InputError("--mixed-precision fp16 needs a CUDA device; use bf16 or no")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    on_cpu = config.device == "cpu" or not any(available.values())
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=config.mixed_precision,
        log_with="tensorboard",
        project_dir=".",  # each run sets its own before it starts its trackers
        # The main process draws and measures alone while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.num_processes != processes:
        raise RuntimeError(
            f"launched as {processes} processes but accelerate sees {accelerator.num_processes}; "
            "start with `torchrun --nproc-per-node N`"
        )
    return accelerator


def choose_directory(config: TrainConfig, name: str, root: Path = Path("runs")) -> Path:
    """--out; or the run that --resume names; or runs/NAME, runs/NAME-2, ... Never one that already
    holds a run, unless it is to be resumed."""
    if config.out is not None:
        if (config.out / "config.yaml").exists() and config.resume is None:
            raise InputError(
                f"{config.out} already holds a run; add --resume, or choose another --out"
            )
        if config.out.exists() and not config.out.is_dir():
            raise InputError(f"--out {config.out} is a file; give a directory")
        return config.out
    if config.resume not in (None, "auto"):
        path = Path(config.resume)
        run = path.parent.parent if (path / "manifest.json").exists() else path
        if not (run / "config.yaml").exists():
            raise InputError(f"--resume {path} is neither a run nor a checkpoint of one")
        return run
    existing = [root / name, *(root / f"{name}-{n}" for n in range(2, 10_000))]
    free = next(i for i, path in enumerate(existing) if not path.exists())
    if config.resume == "auto":
        if free == 0:
            raise InputError(f"nothing to resume: {root / name} does not exist; give --out")
        return existing[free - 1]
    return existing[free]


def write_config(config: TrainConfig, out: Path) -> None:
    write_atomically(out / "config.yaml", dump(config))


def dump(config: TrainConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def identity(config: TrainConfig, data_fingerprint: str, processes: int) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes from it."""
    settings = binding(config.model_dump(mode="json"))
    return {**settings, "data fingerprint": data_fingerprint, "processes": processes}


def binding(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run and its continuation must share."""
    return {key: value for key, value in settings.items() if key not in FREE}


def resume(trainer: Trainer, wanted: str | None, out: Path) -> None:
    """wanted: None, "auto" (newest valid checkpoint of `out`, or a fresh start when there is
    none), a run directory or a checkpoint. InputError when there is nothing there."""
    if wanted is None:
        return
    path = out if wanted == "auto" else Path(wanted)
    if (path / "manifest.json").exists():
        restore(trainer, load_checkpoint(path))
    elif (found := load_latest(path / "checkpoints")) is not None:
        restore(trainer, found[0])
    elif wanted != "auto":
        raise InputError(f"--resume {path} holds no valid checkpoint")
    if trainer.accelerator.is_main_process:
        set_aside_later(out / "checkpoints", trainer.step)
