"""Decode every image once before a run, and report the images that fail.

A file that cannot be read then never interrupts training. The scan cache makes the second run on
the same data start faster.
"""

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


class ScanCache:
    """Sizes (height, width) of images that were decoded without error, by SHA-256 of their bytes.

    The cache is a file that later runs reuse, because hashing an image takes a fraction of the time
    of decoding it. file: None for an empty cache that is never saved. A damaged file, or one from
    another version of the decoder, counts as empty.
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

    def save(self) -> None:
        """Add the new sizes to the file. Raises InputError if it cannot be written."""
        if self._file is not None and self._new:
            sizes = {**_read_sizes(self._file), **self._new}  # another run may have added some
            write_atomically(self._file, json.dumps({"decoder": DECODER, "sizes": sizes}))


def _read_sizes(file: Path) -> dict[str, list[int]]:
    try:
        stored = json.loads(file.read_text())
        return dict(stored["sizes"]) if stored["decoder"] == DECODER else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def try_all(attempt: Callable[[int], Outcome], total: int) -> Iterator[Outcome]:
    """Yield attempt(0), ..., attempt(total - 1) in order; several threads compute them."""

    def outcomes() -> Iterator[Outcome]:
        indices = iter(range(total))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # In chunks: `map` submits everything at once and would hold all results in memory.
            while chunk := list(islice(indices, 256)):
                yield from pool.map(attempt, chunk)

    return iter(tqdm(outcomes(), "checking images", total, delay=2, leave=False))


def refuse_too_many_bad(
    what: str, spec: str, good: int, quarantine: Sequence[dict], max_bad_fraction: float
) -> None:
    """Raise InputError if no image is good or the share of bad ones is above `max_bad_fraction`.

    what: "images" or "pairs"; good: number of usable ones; max_bad_fraction: in [0, 1].
    """
    bad = len(quarantine)
    total = good + bad
    if good and bad <= max_bad_fraction * total:
        return
    examples = "; ".join(f"{row['name']}: {row['reason']}" for row in quarantine[:3])
    limit = (
        f"at most {max_bad_fraction:.1%} may be bad"
        if good
        else "at least one good image is needed"
    )
    remedy = "repair or remove them" + (", or raise --max-bad-fraction" if good else "")
    raise InputError(
        f"{bad} of {total} {what} in {spec} cannot be used ({limit}); {remedy}. "
        f"The first are: {examples}"
    )


def check_limits(limit: int | None, max_bad_fraction: float) -> None:
    """Raise InputError for a value out of range."""
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be >= 1, got {limit}; leave it out to use every image")
    if not 0 <= max_bad_fraction <= 1:
        raise InputError(
            f"`max_bad_fraction` must be in [0, 1], got {max_bad_fraction}; "
            "0.05 allows 5 % of bad images"
        )


def changed_since_scan(name: str, reason: str) -> InputError:
    """The error for an image that was good in the scan and cannot be used now."""
    return InputError(
        f"{name} was readable when the run began, but now: {reason}; "
        "do not change the data while a run uses it"
    )
