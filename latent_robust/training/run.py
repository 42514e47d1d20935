"""A run directory: where it is, whether it may be used, and a run in it from wherever it stands to
its end."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from latent_robust.core import LEVELLED
from latent_robust.errors import InputError
from latent_robust.files import write_atomically

from .command import choose_device
from .config import TrainConfig
from .continuation import resume, run_of
from .loop import Trainer
from .options import Config, validate

# The settings on which the figures of a trained network depend.
MEASUREMENT = (
    "samples", "sampler", "sampling_steps", "clip", "stop_at", "guidance", "features", "weights",
    "clip_score", "reference",
)  # fmt: skip

# What `python -m` calls the commands that train.
MODULES = {"train-pixel": "pixel.train", "finetune-latent": "latent_robust.latent.train"}

# The judge of an audited run that is not trained for it: the model that is fine-tuned.
BASE = "base"

# What the judge of an audited run found, in its directory.
AUDIT = "audit.jsonl"

# What a run replaces, wherever it comes from.
OUTPUTS = (
    AUDIT, "manifest.jsonl", "quarantine.jsonl", "log.jsonl", "metrics.json", "report.html",
    "samples", "checkpoints", "unet", "transformer", "scheduler",
    "pytorch_lora_weights.safetensors", "lora_kohya.safetensors",
)  # fmt: skip


def complete(
    trainer: Trainer,
    begin: Callable[[], None],
    finish: Callable[[nn.Module, float | None], None],
) -> bool:
    """A run from wherever it stands to its last output. False when a signal stopped it (after
    saving).

    Both are called on the main process only. begin: writes what is known before the first step, or
    writes it again when the run is resumed; finish(network, seconds): with the averaged weights,
    and how long training took, None if it was resumed.
    """
    accelerator, out = trainer.accelerator, trainer.out
    # What can be refused is refused before anything of the run is written or trained.
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


def is_finished(config: TrainConfig, out: Path) -> bool:
    """Whether nothing is left to do: all steps are taken, and what was measured was measured as
    this configuration says; and it does not name a checkpoint to train from once more."""
    wanted = config.resume
    if wanted not in (None, "auto") and (Path(wanted) / "manifest.json").exists():
        return False
    facts, drawn = _metrics(out), measurement(config)
    as_asked = config.samples == 0 or facts.get("measurement", drawn) == drawn
    return facts.get("steps") == config.steps and as_asked


def timing(out: Path) -> dict[str, Any]:
    """What metrics.json says of how long training took, where it is only measured again."""
    facts = _metrics(out)
    return {key: facts[key] for key in ("seconds", "cost") if key in facts}


def _metrics(out: Path) -> dict[str, Any]:
    """Empty before the run is finished."""
    try:
        return json.loads((out / "metrics.json").read_text())
    except FileNotFoundError:
        return {}


def measurement(config: TrainConfig) -> dict[str, Any]:
    """The settings on which the figures of a trained network depend, as JSON."""
    settings = config.model_dump(mode="json")
    return {name: settings[name] for name in MEASUREMENT if name in settings}


def say_how_to_go_on(prog: str, out: Path, accelerator: Accelerator) -> None:
    """All settings are in the run's config.yaml, but how many processes it has."""
    command, processes = [prog], accelerator.num_processes
    if processes > 1:
        command = ["torchrun", "--nproc-per-node", str(processes), "-m", MODULES[prog]]
    if accelerator.is_main_process:
        go_on = shlex.join([*command, "--resume", str(out)])
        print(f"stopped; go on with: {go_on}", file=sys.stderr)


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Raises InputError for a device that is not there, RuntimeError for a launch that would make
    every process believe that it is the only one."""
    device = choose_device(config.device)
    if config.mixed_precision == "fp16" and device != "cuda":
        raise InputError("--mixed-precision fp16 needs a CUDA device; use bf16 or no")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = Accelerator(
        cpu=device == "cpu",
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
    holds a run, unless it is to be resumed, or something else that a run would replace."""
    if config.out is not None:
        if config.out.exists() and not config.out.is_dir():
            raise InputError(f"--out {config.out} is a file; give a directory")
        if config.out.exists() and Path(config.data).exists() and config.out.samefile(config.data):
            raise InputError(f"--out {config.out} is where the data lie; give another")
        _refuse_occupied(config, config.out)
        return config.out
    if config.resume not in (None, "auto"):
        run = run_of(Path(config.resume))
        if run is None:
            raise InputError(f"--resume {config.resume} is neither a run nor a checkpoint of one")
        return run
    existing = [root / name, *(root / f"{name}-{n}" for n in range(2, 10_000))]
    free = next(i for i, path in enumerate(existing) if not path.exists())
    if config.resume == "auto":
        if free == 0:
            raise InputError(f"nothing to resume: {root / name} does not exist; give --out")
        return existing[free - 1]
    return existing[free]


def _refuse_occupied(config: TrainConfig, folder: Path) -> None:
    """A run that is not to be resumed, or what one would replace though it comes from none."""
    if (folder / "config.yaml").exists():
        if config.resume is None:
            raise InputError(f"{folder} already holds a run; add --resume, or choose another --out")
        return
    # An audit is written before there is a run, which may be stopped between the two.
    own = {AUDIT} if config.resume is not None else set()
    foreign = [name for name in OUTPUTS if name not in own and (folder / name).exists()]
    if foreign:
        raise InputError(
            f"{folder} is no run and holds {', '.join(foreign)}, which a run would replace; choose "
            "another --out"
        )


def write_config(config: TrainConfig, out: Path) -> None:
    write_atomically(out / "config.yaml", dump(config))


def dump(config: TrainConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def runs_within(config: Config, out: Path) -> list[tuple[Config, Path]]:
    """The runs that make up one, in their order, and their directories: `beside`, to compare with;
    the judge of an audited one; last the run itself, whose report can then show them all.

    InputError if an objective does not go with the other settings."""
    judge = config.judged_by if config.objective == "audited" else None
    runs = []
    for objective in dict.fromkeys([config.beside, judge]):
        earlier_round = judge == objective == config.objective
        if earlier_round or objective not in (None, BASE, config.objective):
            other = {**config.model_dump(), "objective": objective, "beside": None}
            other["resume"] = config.resume and "auto"
            if earlier_round:
                other["rounds"] -= 1
            if objective not in LEVELLED:
                other["drop_noisy"] = False
            if objective != "ambient":
                other["levels"] = None
            if "rounds" in other and objective != "audited":
                other["rounds"] = 1
            # An audited one beside has a judge of its own.
            runs += runs_within(validate(type(config), other), out / objective)
    return [*runs, (config, out)]


def in_their_order(config: Config) -> str:
    """The objectives of the runs that make up one, for people."""
    return ", then ".join(part.objective for part, _ in runs_within(config, Path()))


def refuse_occupied(runs: Sequence[tuple[Config, Path]]) -> None:
    """InputError if the directory of a part holds what is none of this run's. runs: of
    `runs_within`; what `choose_directory` gave is not looked at again."""
    for config, folder in runs[:-1]:
        _refuse_occupied(config, folder)


def made_once(file: Path, accelerator: Accelerator, write: Callable[[Path], None]) -> Path:
    """=>  the file, which the main process writes if an earlier part of the run did not. One that
    lies where no run is known to have begun may be of other settings."""
    begun = (file.parent / "config.yaml").exists()
    if accelerator.is_main_process and not (begun and file.exists()):
        write(file)
    accelerator.wait_for_everyone()
    return file
