"""Where a run goes on from."""

from __future__ import annotations

from pathlib import Path

from latent_robust.errors import InputError

from .checkpoint import Checkpoint, archive_later, load_checkpoint, load_latest
from .loop import Trainer
from .state import restore


def saved_checkpoint(wanted: str | None, out: Path) -> Checkpoint | None:
    """What a run in `out` goes on from; None if there is nothing. wanted: None, "auto" (the newest
    valid checkpoint of `out`), a run directory or a checkpoint."""
    if wanted is None:
        return None
    path = out if wanted == "auto" else Path(wanted)
    if (path / "manifest.json").exists():
        return load_checkpoint(path)
    found = load_latest(path / "checkpoints")
    return None if found is None else found[0]


def resume(trainer: Trainer, wanted: str | None, out: Path) -> None:
    """wanted: as for `saved_checkpoint`. If there is nothing, "auto" is a fresh start, and anything
    else an InputError."""
    if wanted is None:
        return
    checkpoint = saved_checkpoint(wanted, out)
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
            f"{out} is finished and its checkpoints are gone: it would be trained from the start. "
            "Measure it with `latent-robust evaluate`, or take another --out"
        )
    if trainer.accelerator.is_main_process:
        archive_later(out / "checkpoints", trainer.step)
