"""JSON-lines files, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from latent_robust.errors import InputError


def write_jsonl(rows: Iterable[dict], path: str | Path) -> None:
    """One row a line, to a temporary file beside `path`, then renamed.

    Names of files that are not UTF-8 survive as \\u escapes. InputError when it cannot be written;
    an older file at `path` is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; "
            "choose a place that exists, is writable and has room"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
