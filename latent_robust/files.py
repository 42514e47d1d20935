"""Writing so that a file is either whole or absent, and saying plainly when a disk will not."""

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

REFUSALS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM"),
        *("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"),
    )
    if hasattr(errno, name)
}


@contextmanager
def writing(path: Path, kept: str = "nothing that was there before has changed") -> Iterator[None]:
    """Turns the disk's refusals into an InputError that says what is still safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _os_error(error)
        if code not in REFUSALS:
            raise
        raise InputError(
            f"cannot write {path}: {os.strerror(code)}. Choose a place that is writable and has "
            f"room; {kept}"
        ) from error


def _os_error(error: Exception) -> int | None:
    """safetensors hides the system's error in its message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` when all is written: temporary file beside it, fsync,
    rename. An older file at `path` is untouched until then."""
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
def whole_folder(
    path: Path, kept: str = "nothing that was there before has changed"
) -> Iterator[Path]:
    """A folder to fill that becomes `path` when all is written. An older one is there until then,
    or, if the machine stops between two renames, absent."""
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
    """One row a line. Names of files that are not UTF-8 survive as \\u escapes."""
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
