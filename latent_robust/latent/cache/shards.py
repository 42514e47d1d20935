"""What was encoded, on disk: safetensors shards that verify themselves.

    latents-<32 hex digits>.safetensors     tensors "<key>/mean", "<key>/std", ...
    text-<32 hex digits>.safetensors        tensors "<key>/<name>", ...

A shard appears whole (temporary file, fsync, rename), is never changed, and has a name of its own:
any number of processes may write to one folder at once. Its header is the index; it also holds a
SHA-256 over the tensors, and the time of writing, which the file gets as its modification time. A
file with another one was altered or copied, and is hashed before it is believed: a folder that
nobody has touched opens without reading its tensors.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.files import whole_file

logger = logging.getLogger(__name__)

# What a kill can cost: a shard is written when it holds this much, or is this old.
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 300

_NAME = re.compile(r"(latents|text)-[0-9a-f]{32}\.safetensors")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.\d+\.tmp")
_LEFTOVER_SECONDS = 3600  # to write a shard takes seconds: its writer was killed


class Shards:
    """The items of a folder, by key. Read-only; survives pickling and forking.

    A damaged shard is named in a warning and removed, so that its items are missing and will be
    made again. Other files in the folder are left alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard: dict[str, Path] = {}  # by the item's key
        self._fields: dict[Path, list[str]] = {}  # of each item in that shard
        self._opened: dict[Path, safe_open] = {}
        for path in sorted(folder.glob("*.safetensors")):
            if _NAME.fullmatch(path.name):
                self._index(path)
        for path in folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name):
                _remove_if_abandoned(path)

    def __contains__(self, key: str) -> bool:
        return key in self._shard

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Items of the same fields and shapes.  =>  {field: (B, ...)}, on the CPU."""
        items = [self._read(key) for key in keys]
        return {field: torch.stack([item[field] for item in items]) for field in items[0]}

    def _read(self, key: str) -> dict[str, Tensor]:
        path = self._shard[key]
        try:
            if path not in self._opened:
                self._opened[path] = safe_open(path, "pt")
            shard = self._opened[path]
            return {field: shard.get_tensor(f"{key}/{field}") for field in self._fields[path]}
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot read {path}, which was whole when the run began ({error}); start again, "
                "and leave the cache alone while it is being used"
            ) from error

    def _index(self, path: Path) -> None:
        try:
            names = _verified_names(path)
        except FileNotFoundError:
            return  # another process found it damaged
        except SafetensorError as error:
            logger.warning("%s is damaged (%s): its items are made again", path, error)
            with suppress(OSError):
                path.unlink()
            return
        pairs = [name.split("/", 1) for name in names]
        self._shard.update((key, path) for key, _ in pairs)
        self._fields[path] = sorted({field for _, field in pairs})

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}


class ShardWriter:
    """Gathers encoded batches and writes them as shards; a batch is never divided."""

    def __init__(self, folder: Path, kind: str):
        """kind: "latents" or "text"."""
        self._folder, self._kind = folder, kind
        self._begin()

    def add(self, keys: Sequence[str], batch: dict[str, Tensor]) -> None:
        """batch: {field: (B, ...)}, CPU, contiguous. InputError if a shard cannot be written."""
        for field, values in batch.items():
            self._tensors.update(
                (f"{key}/{field}", value) for key, value in zip(keys, values, strict=True)
            )
            self._bytes += values.nbytes
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._began >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is left."""
        if not self._tensors:
            return
        # Whole seconds: every file system can keep them.
        seconds = int(time.time())
        written = str(seconds * 10**9)
        metadata = {"written": written, "sha256": _digest(self._tensors, written)}
        with whole_file(self._folder / f"{self._kind}-{uuid.uuid4().hex}.safetensors") as file:
            file.write(save(self._tensors, metadata))
            file.flush()
            os.utime(file.fileno(), (seconds, seconds))
        self._begin()

    def _begin(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0
        self._began = time.monotonic()


def _verified_names(path: Path) -> list[str]:
    """=>  the names of its tensors. Raises SafetensorError for a damaged shard."""
    with safe_open(path, "pt") as shard:  # compares the header with the file's size
        names, metadata = list(shard.keys()), shard.metadata() or {}
        written = metadata.get("written", "")
        if written != str(path.stat().st_mtime_ns):
            tensors = {name: shard.get_tensor(name) for name in names}
            if _digest(tensors, written) != metadata.get("sha256"):
                raise SafetensorError("its hash differs")
            with suppress(OSError):  # a read-only copy is hashed every time
                os.utime(path, ns=(int(written), int(written)))
        return names


def _digest(tensors: dict[str, Tensor], written: str) -> str:
    digest = hashlib.sha256(written.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):  # gone, or not ours to remove
        if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
            path.unlink()
