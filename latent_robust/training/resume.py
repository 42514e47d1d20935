"""Where a run continues from."""

from __future__ import annotations

from pathlib import Path

from latent_robust.errors import InputError

from .checkpoint import Checkpoint, archive_later, load_checkpoint, load_latest
from .loop import Trainer
from .state import restore


def saved_checkpoint(wanted: str | None, out: Path) -> Checkpoint | None:
    """The checkpoint from which a run in `out` continues; None if there is none.

    wanted: None; "auto", the newest valid checkpoint of `out`; a run directory; or a checkpoint.
    """
    if wanted is None:
        return None
    path = out if wanted == "auto" else Path(wanted)
    if (path / "manifest.json").exists():
        return load_checkpoint(path)
    latest = load_latest(path / "checkpoints")
    return None if latest is None else latest[0]


def resume(trainer: Trainer, wanted: str | None, out: Path) -> None:
    """Restore the trainer. wanted: as for `saved_checkpoint`.

    Without a checkpoint, "auto" starts afresh. Raises InputError if another `wanted` has no
    checkpoint, if the checkpoint has more steps than the configuration, or belongs to another run.
    """
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
        raise InputError(
            f"--resume {wanted} holds no valid checkpoint; give a run or a checkpoint that does"
        )
    elif (out / "metrics.json").exists():  # else it may have stopped before its first checkpoint
        raise InputError(
            f"{out} is finished and its checkpoints are gone, so it would train from the start. "
            "Measure it with `latent-robust evaluate`, or choose another --out"
        )
    if trainer.accelerator.is_main_process:
        archive_later(out / "checkpoints", trainer.step)
