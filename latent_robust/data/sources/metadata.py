"""Metadata files of an image folder: metadata.jsonl, metadata.csv or metadata.parquet.

Each row has `file_name`, a caption column and optionally `repeats`. The format is the one that the
`datasets` library calls ImageFolder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from latent_robust.errors import InputError, did_you_mean

from .pair_list import find_caption_column, to_repeats

METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})


class Row(NamedTuple):
    where: str  # e.g. "line 3"
    file_name: Any  # unchecked, as stored
    caption: Any  # unchecked, as stored
    repeats: int  # >= 1


def read_metadata(path: Path, caption_column: str | None) -> Iterator[Row]:
    """Yield the rows of one metadata file.

    Raises InputError for a file that cannot be parsed and for a missing column.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    records = readers[path.suffix](path)
    columns = {column for _, record in records for column in record}
    if records and "file_name" not in columns:
        near = did_you_mean("file_name", columns) or ";"
        available = ", ".join(sorted(columns)) or "none"
        raise InputError(f"no column 'file_name' in {path}{near} available columns: {available}")
    caption_column = find_caption_column(columns, caption_column, str(path)) if records else ""
    for where, record in records:
        repeats = to_repeats(record.get("repeats"), f"{path}, {where}")
        yield Row(where, record.get("file_name"), record.get(caption_column), repeats)


def _read_jsonl(path: Path) -> list[tuple[str, dict]]:
    records = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number} is not JSON: {error}; fix this line"
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number} is not a JSON object; "
                'a line should look like {"file_name": "a.png", "text": "a caption"}'
            )
        records.append((f"line {number}", record))
    return records


def _read_csv(path: Path) -> list[tuple[str, dict]]:
    reader = csv.DictReader(StringIO(_text(path)), strict=True)
    try:
        records = [(f"line {reader.line_num}", record) for record in reader]
    except csv.Error as error:
        raise InputError(
            f"{path} is not CSV after line {reader.line_num}: {error}; fix the next line"
        ) from error
    for where, record in records:
        if None in record:  # DictReader's key for cells that have no column
            raise InputError(
                f"{path}, {where} has more cells than columns; put captions with commas in quotes"
            )
    return records


def _read_parquet(path: Path) -> list[tuple[str, dict]]:
    from pyarrow import ArrowException, parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"cannot read {path} as parquet: {error}") from error
    return [(f"row {row}", record) for row, record in enumerate(records)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}; save it as UTF-8") from error
