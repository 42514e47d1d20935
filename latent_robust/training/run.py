"""One run, from where it is to its end, and what it needs when several processes share it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from latent_robust.errors import InputError

from .config import TrainConfig
from .device import choose_device
from .loop import Trainer
from .resume import resume


def complete(
    trainer: Trainer,
    begin: Callable[[], None],
    finish: Callable[[nn.Module, float | None], None],
) -> bool:
    """Train a run to its end and write its results. False if a signal stopped it (after saving).

    Both callbacks run on the main process only.
    begin: writes what is known before the first step; also called when the run is resumed.
    finish(network, seconds): with the averaged weights. seconds: training time, None if resumed.
    """
    accelerator, out = trainer.accelerator, trainer.out
    # First, so that a refused --resume has written and trained nothing.
    resume(trainer, trainer.config.resume, out)
    if accelerator.is_main_process:
        begin()
    accelerator.wait_for_everyone()
    accelerator.project_configuration.logging_dir = str(out)
    accelerator.init_trackers("tensorboard")

    fresh, started = trainer.step == 0, time.perf_counter()
    if not trainer.train():
        return False
    seconds = time.perf_counter() - started if fresh else None
    if accelerator.is_main_process:
        trainer.with_average(lambda network: finish(network, seconds))
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()
    return True


def say_how_to_go_on(prog: str, module: str, out: Path, accelerator: Accelerator) -> None:
    """Print the command that resumes the run in `out`. module: the command's name for `python -m`.

    All settings are in the run's config.yaml, except the number of processes.
    """
    command, processes = [prog], accelerator.num_processes
    if processes > 1:
        command = ["torchrun", "--nproc-per-node", str(processes), "-m", module]
    if accelerator.is_main_process:
        go_on = shlex.join([*command, "--resume", str(out)])
        print(f"stopped; go on with: {go_on}", file=sys.stderr)


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Raises InputError for a device that is not available, and RuntimeError for a launch in which
    every process would train as if it were the only one."""
    device = choose_device(config.device)
    if config.mixed_precision == "fp16" and device != "cuda":
        raise InputError(
            f"--mixed-precision fp16 needs a CUDA device, got {device}; use bf16 or no"
        )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=config.mixed_precision,
        log_with="tensorboard",
        project_dir=".",  # each run sets its own before it starts its trackers
        # The main process samples and measures alone while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.num_processes != processes:
        raise RuntimeError(
            f"launched as {processes} processes but accelerate sees {accelerator.num_processes}; "
            "start with `torchrun --nproc-per-node N`"
        )
    return accelerator


def compute_on_main(file: Path, accelerator: Accelerator, write: Callable[[Path], None]) -> Path:
    """Write `file` on the main process unless this run already wrote it.  =>  `file`.

    A file in a directory without config.yaml is stale and is rewritten. Called on all ranks, which
    wait for the main process.
    """
    begun = (file.parent / "config.yaml").exists()
    if accelerator.is_main_process and not (begun and file.exists()):
        write(file)
    accelerator.wait_for_everyone()
    return file
