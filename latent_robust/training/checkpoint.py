"""Checkpoints: complete or absent, safetensors and JSON only, verified before they are loaded.

    checkpoints/step-00001000/
        model.safetensors       the trained weights
        ema.safetensors         their moving average
        optimizer.safetensors   moments, by parameter name
        trainer.json            step, schedule, scaler, settings that must match on resume
        manifest.json           sha256 of each of the above, written last

No random state is stored: noise, times, dropout and data order are functions of (seed, step, rank).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.files import sync_directory, whole_folder

logger = logging.getLogger(__name__)
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer.json")


@dataclass
class Checkpoint:
    """model, ema: name -> tensor (ema may be empty). optimizer: torch's state_dict, with parameter
    names in place of indices. trainer: JSON values, among them `step`."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    trainer: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, keep: int) -> Path:
    """Write `folder/step-N`, then delete the oldest checkpoints beyond `keep`.  =>  its path.

    Atomic: a kill at any instant leaves every earlier checkpoint valid. Raises InputError if the
    disk is full or read-only.
    """
    final = folder / f"step-{checkpoint.trainer['step']:08d}"
    with whole_folder(final, kept="the earlier checkpoints are intact") as temporary:
        _write(checkpoint, temporary)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def archive_later(folder: Path, step: int) -> None:
    """Rename the checkpoints beyond `step` to abandoned-step-N.

    A run that resumes from an earlier step leaves them behind. Renamed, they are not resumed from,
    and they do not count when old checkpoints are deleted.
    """
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step-")) > step:
            archived = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(archived, ignore_errors=True)
            path.rename(archived)


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. Does not verify them."""
    return sorted(folder.glob("step-[0-9]*"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises InputError that names the file that is missing, truncated or altered."""
    verify(path)
    trainer = json.loads((path / "trainer.json").read_text())
    return Checkpoint(
        model=load_file(path / "model.safetensors"),
        ema=load_file(path / "ema.safetensors"),
        optimizer=_unflatten(
            load_file(path / "optimizer.safetensors"),
            trainer["parameter_groups"],
        ),
        trainer=trainer,
    )


def load_latest(folder: Path) -> tuple[Checkpoint, Path] | None:
    """The newest valid checkpoint and its path, or None. Logs a warning for each damaged one."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), path
        except (InputError, SafetensorError) as error:
            logger.warning("skipping a damaged checkpoint: %s", error)
    return None


def verify(path: Path) -> None:
    """Raises InputError unless every file is there and has the hash that manifest.json says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete checkpoint ({error}); use an earlier one"
        ) from None
    for name in FILES:
        if not (path / name).is_file():
            raise InputError(f"{path / name} is missing; use an earlier checkpoint")
        if _sha256(path / name) != manifest.get(name):
            raise InputError(
                f"{path / name} is damaged (its hash differs); use an earlier checkpoint"
            )


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    tensors, groups = _flatten(checkpoint.optimizer)
    for name, content in (
        ("model.safetensors", checkpoint.model),
        ("ema.safetensors", checkpoint.ema),
        ("optimizer.safetensors", tensors),
    ):
        save_file({k: v.detach().cpu().contiguous() for k, v in content.items()}, folder / name)
    trainer = {**checkpoint.trainer, "parameter_groups": groups}
    (folder / "trainer.json").write_text(json.dumps(trainer, indent=2))
    manifest = {name: _sha256(folder / name) for name in FILES}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
    sync_directory(folder)


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """=>  moments as tensors named `parameter/moment`; the parameter groups, which are JSON."""
    tensors = {
        f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, moments in optimizer["state"].items()
        for key, value in moments.items()
    }
    return tensors, optimizer["param_groups"]


def _unflatten(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The inverse of `_flatten`."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        state.setdefault(name, {})[moment] = value
    return {"state": state, "param_groups": groups}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
