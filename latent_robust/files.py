"""Write a file completely or not at all, and report clearly when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from .errors import InputError

# System errors that the user can mend: no space, no permission, a wrong path.
REFUSALS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM"),
        *("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"),
    )
    if hasattr(errno, name)
}

UNCHANGED = "nothing that was there before has changed"


@contextmanager
def writing(path: Path, kept: str = UNCHANGED) -> Iterator[None]:
    """Turn the disk's refusals into an InputError. kept: what is still safe, for the message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _os_error(error)
        if code is None or code not in REFUSALS:
            raise
        raise InputError(
            f"cannot write {path}: {os.strerror(code)}. Choose a place that is writable and has "
            f"room; {kept}"
        ) from error


def _os_error(error: Exception) -> int | None:
    """The system's error number. safetensors gives it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match.group(1)) if match else None


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """An open binary file that becomes `path` once everything is written.

    Writes to a temporary file in the same directory, then fsync and rename. An older file at `path`
    stays until the rename, and for good if the block raises.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def whole_folder(path: Path, kept: str = UNCHANGED) -> Iterator[Path]:
    """An empty folder that becomes `path` once the block ends. kept: as for `writing`.

    An older folder at `path` stays until then. If the machine stops between its removal and the
    rename, `path` is absent.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, kept):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(rows: Iterable[dict], path: str | Path) -> None:
    """One row per line. File names that are not UTF-8 are kept as \\u escapes."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
