"""Finished runs: whether a path is one, and which package loads, samples and audits it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from latent_robust.errors import InputError, did_you_mean

from .options import refuse_options

if TYPE_CHECKING:
    from torch import Tensor

    from latent_robust.evaluation.runs import Run

# Each module has `generate`, `audit`, `clean_images` and GENERATION_OPTIONS.
RUN_KINDS = {"pixel": "pixel.finished", "latent": "latent_robust.latent.finished"}
ALL_GENERATION_OPTIONS = ("sampler", "stop_at", "prompt", "guidance")


def check_runs(paths: Iterable[Path]) -> None:
    """Raises InputError for a path that is not a run directory. Reads no file, imports no torch."""
    for path in paths:
        if not is_run(path):
            siblings = sorted(file.parent.name for file in path.parent.glob("*/config.yaml"))
            hint = did_you_mean(path.name, siblings) or "; give the --out of a training command"
            raise InputError(f"{path} is not a run directory: it has no config.yaml{hint}")


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def finished(run: Run) -> ModuleType:
    """The package's module for finished runs of this kind."""
    return import_module(RUN_KINDS[run.kind])


def generate(path: Path, run: Run, count: int, options: argparse.Namespace) -> Tensor:
    """Images of a finished run.  =>  (count, C, H, W), about [-1, 1].

    Raises InputError for options that this kind of run does not have."""
    module = finished(run)
    valid = module.GENERATION_OPTIONS
    invalid = [name for name in ALL_GENERATION_OPTIONS if name not in valid]
    refuse_options(options, invalid, f"is not for {run.kind} runs, and {path} is one")
    return module.generate(
        path,
        run.config,
        count,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        offline=options.offline,
        **{name: getattr(options, name, None) for name in valid},
    )
