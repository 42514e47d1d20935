"""Shards of the cache: safetensors files that verify themselves.

    latents-<32 hex digits>.safetensors     tensors "<key>/mean", "<key>/std", ...
    text-<32 hex digits>.safetensors        tensors "<key>/<name>", ...

A shard is written whole (temporary file, fsync, rename), never changed, and has a unique name, so
any number of processes may write to one folder at once. Its header is the index. The header also
holds a SHA-256 over the tensors, and the time of writing, to which the file's modification time is
set. If the two times differ, the file was altered or copied, and its hash is checked. A folder that
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

# A shard is written when it holds this many bytes, or is this old. A kill loses no more than that.
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 300

_NAME = re.compile(r"(latents|text)-[0-9a-f]{32}\.safetensors")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.\d+\.tmp")
_LEFTOVER_SECONDS = 3600  # writing takes seconds, so the writer of an older one was killed


class Shards:
    """The items of a folder, by key. Read-only; survives pickling and forking.

    A damaged shard is removed with a warning that names it; its items are then missing and will be
    encoded again. Other files in the folder are left alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard: dict[str, Path] = {}  # by the item's key
        self._fields: dict[Path, list[str]] = {}  # names of each item's tensors, by shard
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
        """keys: of B items with the same fields and shapes.  =>  {field: (B, ...)}, on the CPU.

        InputError if a shard cannot be read."""
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
                f"cannot read {path}, which was intact when the run began ({error}); start again, "
                "and do not change the cache during a run"
            ) from error

    def _index(self, path: Path) -> None:
        try:
            names = _verified_names(path)
        except FileNotFoundError:
            return  # another process removed it as damaged
        except SafetensorError as error:
            logger.warning("%s is damaged (%s): its items are encoded again", path, error)
            with suppress(OSError):
                path.unlink()
            return
        pairs = [name.split("/", 1) for name in names]
        self._shard.update((key, path) for key, _ in pairs)
        self._fields[path] = sorted({field for _, field in pairs})

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}


class ShardWriter:
    """Collects encoded batches and writes them as shards. A batch is never split."""

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
        """Write the collected batches. InputError if the disk refuses."""
        if not self._tensors:
            return
        # Whole seconds, which every file system can store.
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
    """=>  the names of the shard's tensors. SafetensorError for a damaged shard."""
    with safe_open(path, "pt") as shard:  # checks the header against the file's size
        names, metadata = list(shard.keys()), shard.metadata() or {}
        written = metadata.get("written", "")
        if written != str(path.stat().st_mtime_ns):
            tensors = {name: shard.get_tensor(name) for name in names}
            if _digest(tensors, written) != metadata.get("sha256"):
                raise SafetensorError("its hash differs")
            with suppress(OSError):  # a read-only copy is hashed on every open
                os.utime(path, ns=(int(written), int(written)))
        return names


def _digest(tensors: dict[str, Tensor], written: str) -> str:
    digest = hashlib.sha256(written.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):  # already removed, or no permission
        if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
            path.unlink()
