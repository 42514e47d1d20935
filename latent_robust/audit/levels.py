"""How noisy each training sample is: levels from a file."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from latent_robust.errors import InputError


def read_levels(path: str | Path, count: int, channels: int) -> Tensor:
    """A JSON-lines file with a row {"index", "level"} for each of `count` samples, as an audit
    writes it; a level is one number, or one for each of the samples' channels.  =>  (count,) or
    (count, channels), float32, in units of the samples, >= 0.

    Raises InputError for a file or line that cannot be read, an index that is missing, twice there
    or out of range, a level that is negative or not finite, a row of another length.
    """
    path = Path(path)
    levels: dict[int, list[float]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            index, level = _row(line, f"{path}, line {number}", count)
            if index in levels:
                raise InputError(f"{path}, line {number}: index {index} is there twice")
            levels[index] = level
    missing = [index for index in range(count) if index not in levels]
    if missing:
        examples = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{path} has no level for {len(missing)} of {count} samples (index {examples}); "
            "was it made for these data?"
        )
    table = [levels[index] for index in range(count)]
    lengths = {len(row) for row in table}
    if lengths not in ({1}, {channels}):
        found = " or ".join(map(str, sorted(lengths)))
        raise InputError(
            f"{path} has {found} levels for a sample of {channels} channels; give one, or one "
            "each: was it made for these data?"
        )
    return torch.tensor(table).squeeze(1)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the levels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file of JSON lines") from error


def _row(line: str, where: str, count: int) -> tuple[int, list[float]]:
    try:
        row = json.loads(line)
        index, level = row["index"], row["level"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: expected {{"index": 0, "level": 0.1}}, got {line!r}') from error
    if type(index) is not int or not 0 <= index < count:
        raise InputError(f"{where}: `index` must be a whole number in 0..{count - 1}, got {index}")
    levels = level if isinstance(level, list) and level else [level]
    for one in levels:
        if type(one) not in (int, float) or not isfinite(one) or one < 0:
            raise InputError(f"{where}: `level` must be a number >= 0, got {one}")
    return index, [float(one) for one in levels]
