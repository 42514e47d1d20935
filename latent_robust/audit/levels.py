"""The file with the two numbers of each training sample (core/levels.py).

An audit writes it, and training with `--levels` reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latent_robust.core import Levels
from latent_robust.errors import InputError

NEVER = "never"  # `usable_from` of a sample that training leaves out


def root_mean_square(levels: Tensor) -> Tensor:
    """One level per sample: (N, C)  =>  (N,)."""
    return levels.square().mean(1).sqrt()


def read_levels(path: str | Path, count: int, channels: int) -> Levels:
    """Read the levels of `count` samples.

    path: a JSON-lines file as an audit writes it, with one row {"index", "level", "usable_from",
    "trusted"} per sample, in units of the samples. `level` is one number or a list with one for
    each channel. `usable_from` is a number, or "never"; it may be missing, and then follows from
    the level. `trusted` may be missing too.

    Raises InputError for a file or line that cannot be read; an index that is missing, repeated or
    out of range; a number that is negative or not finite; and a list of another length.
    """
    path = Path(path)
    levels: dict[int, list[float]] = {}
    usable_from: dict[int, float] = {}
    trusted: list[int] = []
    for where, row in _rows(path, count):
        if "measured" in row.own:
            raise InputError(
                f"{path} is the audit of a data set: give it as --audit, which finds its rows by "
                "name"
            )
        if row.index in levels:
            raise InputError(f"{where}: index {row.index} appears twice")
        levels[row.index], usable_from[row.index] = row.levels, row.usable_from
        if row.trusted:
            trusted.append(row.index)
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
    column = torch.tensor([usable_from[index] for index in range(count)])
    mask = torch.zeros(count, dtype=torch.bool)
    mask[trusted] = True
    return Levels(torch.tensor(table).squeeze(1), column, mask)


def read_doubtful(path: str | Path, count: int) -> Tensor:
    """Which captions an audit doubts, (N,), bool: the column "caption_doubtful", false where it is
    missing. path, count: as for `read_levels`, which checks the file."""
    doubtful = torch.zeros(count, dtype=torch.bool)
    for _, row in _rows(Path(path), count):
        doubtful[row.index] = row.own.get("caption_doubtful") is True
    return doubtful


@dataclass(frozen=True)
class DataRows:
    """What `latent-robust audit DATA` says about N samples, by their index in a run.

    levels: in units of [-1, 1]; left_out: (N,), bool, copies of another; tags: words for what is
    wrong with each sample, "" for nothing."""

    levels: Levels
    left_out: Tensor
    tags: list[str]

    def summary(self) -> str:
        dirty = (self.levels.usable_from > 0) & ~self.left_out
        never = dirty & self.levels.usable_from.isinf()
        return (
            f"of {len(self.tags):,} samples {int(self.left_out.sum()):,} copies are left out; "
            f"{int(dirty.sum()):,} are dirty, of which {int(never.sum()):,} at every noise level"
        )


class Samples(Protocol):
    """ContaminatedImages and ContaminatedPairs."""

    trusted: list[int]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...


def data_audit_of(samples: Samples, path: Path | None) -> DataRows | None:
    """What the file of --audit says about the samples of a run; None without a file."""
    if path is None:
        return None
    names = [samples.name(index) for index in range(len(samples))]
    return read_data_audit(path, names, samples.trusted)


def read_data_audit(path: str | Path, names: Sequence[str], trusted: Collection[int]) -> DataRows:
    """Read the audit of a data set, an audit.jsonl with a row for each sample, found by its name.

    names: of the samples of a run; trusted: indices of those that need no row. Raises InputError
    for a file or line that cannot be read, and for a sample without a row.
    """
    rows: dict[str, _Row] = {}
    for where, row in _rows(Path(path), sys.maxsize):
        if not isinstance(row.own.get("name"), str) or len(row.levels) != 1:
            raise InputError(
                f"{where}: this is not the audit of a data set; `latent-robust audit DATA` makes "
                "one, and --levels reads the audits of models"
            )
        rows[row.own["name"]] = row
    spared = set(trusted)
    missing = [n for index, n in enumerate(names) if n not in rows and index not in spared]
    if missing:
        examples = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{path} has no row for {len(missing):,} of {len(names):,} samples ({examples}); audit "
            "the data again, it has changed"
        )
    found = [_CLEAN if index in spared else rows[name] for index, name in enumerate(names)]
    level = torch.tensor([row.levels[0] for row in found])
    least = torch.tensor([row.usable_from for row in found])
    mask = torch.zeros(len(names), dtype=torch.bool)
    mask[sorted(spared)] = True
    left_out = torch.tensor([row.own.get("exclude") is True for row in found], dtype=torch.bool)
    tags = [", ".join(map(str, row.own.get("tags", []))) for row in found]
    return DataRows(Levels(level, least, mask), left_out, tags)


@dataclass(frozen=True)
class _Row:
    """levels: one, or one per channel; own: the whole row."""

    index: int
    levels: list[float]
    usable_from: float
    trusted: bool
    own: dict[str, Any]


_CLEAN = _Row(0, [0.0], 0.0, True, {})


def _rows(path: Path, count: int) -> Iterator[tuple[str, _Row]]:
    """Each row, and where it stands. Raises InputError as `read_levels`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the levels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _row(line, where, count)


def _row(line: str, where: str, count: int) -> _Row:
    try:
        row = json.loads(line)
        index, level = row["index"], row["level"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: expected {{"index": 0, "level": 0.1}}, got {line!r}') from error
    if type(index) is not int or not 0 <= index < count:
        raise InputError(f"{where}: `index` must be a whole number in 0..{count - 1}, got {index}")
    levels = level if isinstance(level, list) and level else [level]
    numbers = [_number(value, "level", where) for value in levels]
    least = row.get("usable_from", 0.0)
    vouched = row.get("trusted", False)
    if type(vouched) is not bool:
        raise InputError(f"{where}: `trusted` must be true or false, got {vouched}")
    usable_from = inf if least == NEVER else _number(least, "usable_from", where)
    return _Row(index, numbers, usable_from, vouched, row)


def _number(value: Any, name: str, where: str) -> float:
    if type(value) not in (int, float) or not isfinite(value) or value < 0:
        never = f' or "{NEVER}"' if name == "usable_from" else ""
        raise InputError(f"{where}: `{name}` must be a number >= 0{never}, got {value}")
    return float(value)


def rounded(number: float) -> float | str:
    """A number of the file: six digits, or "never" for infinity."""
    return NEVER if number == inf else float(f"{number:.6g}")
