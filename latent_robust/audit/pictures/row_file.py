"""The file that keeps what was measured, so that an interrupted scan goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from latent_robust.files import writing


class RowFile:
    """The rows of a scan, in a file to which new ones are appended.

    file: None to keep nothing. key: rows of another one are not used; mark_key: of the mark that
    is looked for. known: digest of a picture's file => the place of its row, and the key of the
    mark of its score.
    """

    def __init__(self, file: Path | None, key: str, mark_key: str):
        self._path, self._key, self._mark_key = file, key, mark_key
        self._file: Any = None
        self.known = {} if file is None else _known_rows(file, key)

    def __enter__(self) -> RowFile:
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "rb+" if self.known else "wb+")
                if not self.known:
                    self._file.write(json.dumps({"scan": self._key}).encode() + b"\n")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def merged(self, digest: str, row: dict[str, Any]) -> dict[str, Any]:
        """The whole row of a picture. row: what was measured now; it is added to the file."""
        stored: dict[str, Any] = {}
        if digest in self.known and "bad" not in row:
            self._file.seek(self.known[digest][0])
            stored = json.loads(self._file.readline())["row"]
            if not row:
                return stored
        whole = {**stored, **row}
        if self._path is not None and digest:
            line = {"digest": digest, "mark": self._mark_key, "row": whole}
            with writing(self._path):
                self._file.seek(0, os.SEEK_END)
                self._file.write(json.dumps(line).encode() + b"\n")
        return whole


def _known_rows(file: Path, key: str) -> dict[str, tuple[int, str]]:
    """The `known` of a file; empty if it is of other settings or damaged. A row that was cut off by
    a kill is cut off the file."""
    known: dict[str, tuple[int, str]] = {}
    try:
        with open(file, "rb") as lines:
            if json.loads(lines.readline()) != {"scan": key}:
                return {}
            place = lines.tell()
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                stored = json.loads(line)
                known[stored["digest"]] = (place, stored["mark"])
                place += len(line)
        os.truncate(file, place)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return known
