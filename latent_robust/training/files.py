"""Writing so that a file is either whole or absent, and saying plainly when a disk will not."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latent_robust.errors import InputError


@contextmanager
def writing(path: Path, kept: str = "nothing that was there before has changed") -> Iterator[None]:
    """Turns the disk's refusals into an InputError that says what is still safe."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT):
            raise
        raise InputError(
            f"cannot write {path}: {os.strerror(error.errno)}. Free some space or choose another "
            f"--out; {kept}"
        ) from error


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
