"""Writing so that a file is either whole or absent, and saying plainly when a disk will not."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from latent_robust.errors import InputError

REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)


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
            f"cannot write {path}: {os.strerror(code)}. Free some space or choose another --out; "
            f"{kept}"
        ) from error


def _os_error(error: Exception) -> int | None:
    """safetensors hides the system's error in its message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None


def write_atomically(path: Path, data: bytes | str) -> None:
    """Temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
