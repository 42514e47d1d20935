"""Trying every image once before a run, and what to say of those that fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from latent_robust.errors import InputError
from latent_robust.files import write_atomically

from .decode import DECODER

Outcome = TypeVar("Outcome")


class KnownSizes:
    """(height, width) of images that were decoded without fault, by the SHA-256 of their bytes.

    Kept in a file from one run to the next: hashing an image takes a fraction of the time of
    decoding it. Without a file nothing is known, and nothing kept. Of a damaged file, or one that
    another decoder wrote, nothing is believed.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._sizes: dict[str, list[int]] = {}
        self._new: dict[str, list[int]] = {}
        if file is not None:
            self._sizes = _read_sizes(file)

    def get(self, checksum: bytes) -> tuple[int, int] | None:
        size = self._sizes.get(checksum.hex())
        return None if size is None else tuple(size)

    def add(self, checksum: bytes, size: tuple[int, int]) -> None:
        if checksum.hex() not in self._sizes:
            self._new[checksum.hex()] = list(size)

    def keep(self) -> None:
        """InputError if the file cannot be written."""
        if self._file is not None and self._new:
            sizes = {**_read_sizes(self._file), **self._new}  # another run may have written
            write_atomically(self._file, json.dumps({"decoder": DECODER, "sizes": sizes}))


def _read_sizes(file: Path) -> dict[str, list[int]]:
    try:
        kept = json.loads(file.read_text())
        return dict(kept["sizes"]) if kept["decoder"] == DECODER else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def try_all(attempt: Callable[[int], Outcome], total: int) -> Iterator[Outcome]:
    """attempt(0), ..., attempt(total - 1), in order, made by several threads."""

    def outcomes() -> Iterator[Outcome]:
        indices = iter(range(total))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # By portions: `map` starts everything at once and would hold all results.
            while portion := list(islice(indices, 256)):
                yield from pool.map(attempt, portion)

    return iter(tqdm(outcomes(), "checking images", total, delay=2, leave=False))


def refuse_too_many_bad(
    what: str, spec: str, good: int, quarantine: Sequence[dict], max_bad_fraction: float
) -> None:
    """what: "images" or "pairs"; good: how many are left; max_bad_fraction: in [0, 1]."""
    bad = len(quarantine)
    total = good + bad
    if good and bad <= max_bad_fraction * total:
        return
    examples = "; ".join(f"{row['name']}: {row['reason']}" for row in quarantine[:3])
    limit = f"at most {max_bad_fraction:.1%}" if good else "at least one good image"
    raise InputError(
        f"{bad} of {total} {what} of {spec} cannot be used ({limit} allowed). "
        f"The first: {examples}. Mend or remove them, or raise --max-bad-fraction"
    )


def check_limits(limit: int | None, max_bad_fraction: float) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be >= 1, got {limit}; leave it out to take every image")
    if not 0 <= max_bad_fraction <= 1:
        raise InputError(f"`max_bad_fraction` must lie in [0, 1], got {max_bad_fraction}")


def changed(name: str, reason: str) -> InputError:
    """The error for an image that was good when it was tried."""
    return InputError(
        f"{name} was readable when the run began, now: {reason}; "
        "leave the data alone while it is being used"
    )
