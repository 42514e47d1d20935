"""Noise levels of training samples: the standard deviation of the noise in each sample.

A level is in units of the samples, and is one number or one for each channel. An audit writes the
levels to a file, and training with `--levels` reads them.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from latent_robust.errors import InputError


def root_mean_square(levels: Tensor) -> Tensor:
    """One level per sample: (N, C)  =>  (N,)."""
    return levels.square().mean(1).sqrt()


def read_levels(path: str | Path, count: int, channels: int) -> Tensor:
    """Read the levels of `count` samples. Returns float32 (count,) or (count, channels), >= 0.

    path: a JSON-lines file as an audit writes it, with one row {"index", "level"} per sample. A
    level is one number or a list with one for each channel, in units of the samples.

    Raises InputError for a file or line that cannot be read; an index that is missing, repeated or
    out of range; a level that is negative or not finite; and a list of another length.
    """
    path = Path(path)
    levels: dict[int, list[float]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            index, level = _row(line, f"{path}, line {number}", count)
            if index in levels:
                raise InputError(f"{path}, line {number}: index {index} appears twice")
            levels[index] = level
    missing = [index for index in range(count) if index not in levels]
    if missing:
        examples = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{path} has no level for {len(missing)} of {count} samples (index {examples}); "
            "was it made for this dataset?"
        )
    table = [levels[index] for index in range(count)]
    lengths = {len(row) for row in table}
    if lengths not in ({1}, {channels}):
        given = " or ".join(map(str, sorted(lengths)))
        raise InputError(
            f"{path} has {given} levels for a sample of {channels} channels; give one level, or "
            "one per channel: was it made for this dataset?"
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
    """Returns the index and its levels, one or one per channel. where: for the message."""
    try:
        row = json.loads(line)
        index, level = row["index"], row["level"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: expected {{"index": 0, "level": 0.1}}, got {line!r}') from error
    if type(index) is not int or not 0 <= index < count:
        raise InputError(f"{where}: `index` must be a whole number in 0..{count - 1}, got {index}")
    levels = level if isinstance(level, list) and level else [level]
    for value in levels:
        if type(value) not in (int, float) or not isfinite(value) or value < 0:
            raise InputError(f"{where}: `level` must be a number >= 0, got {value}")
    return index, [float(value) for value in levels]
