"""Which package loads, samples and audits a finished run, by the kind of the run."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .options import refuse_options

if TYPE_CHECKING:
    from torch import Tensor

    from latent_robust.evaluation.runs import Run

# Each module has `generate`, `audit`, `clean_images` and GENERATION_OPTIONS.
RUN_KINDS = {"pixel": "pixel.finished", "latent": "latent_robust.latent.finished"}
ALL_GENERATION_OPTIONS = ("sampler", "stop_at", "prompt", "guidance")


def finished(run: Run) -> ModuleType:
    return import_module(RUN_KINDS[run.kind])


def generate(path: Path, run: Run, count: int, options: argparse.Namespace) -> Tensor:
    """=>  (count, C, H, W). Raises InputError for options that this kind of run does not take."""
    module = finished(run)
    mine = module.GENERATION_OPTIONS
    others = [name for name in ALL_GENERATION_OPTIONS if name not in mine]
    refuse_options(options, others, f"is not for {run.kind} runs, and {path} is one")
    return module.generate(
        path,
        run.config,
        count,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        offline=options.offline,
        **{name: getattr(options, name, None) for name in mine},
    )
