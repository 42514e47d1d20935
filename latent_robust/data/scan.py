"""Trying every picture once before a run, and what to say of those that fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from latent_robust.errors import InputError

Outcome = TypeVar("Outcome")


def try_all(attempt: Callable[[int], Outcome], total: int) -> Iterator[Outcome]:
    """attempt(0), ..., attempt(total - 1), in order, made by several threads."""

    def outcomes() -> Iterator[Outcome]:
        indices = iter(range(total))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # By portions: `map` starts everything at once and would hold all results.
            while portion := list(islice(indices, 256)):
                yield from pool.map(attempt, portion)

    return iter(tqdm(outcomes(), "checking pictures", total, delay=2, leave=False))


def refuse_too_many_bad(
    what: str, spec: str, good: int, quarantine: Sequence[dict], max_bad_fraction: float
) -> None:
    """what: "pictures" or "pairs"; good: how many are left; max_bad_fraction: in [0, 1]."""
    bad = len(quarantine)
    total = good + bad
    if good and bad <= max_bad_fraction * total:
        return
    examples = "; ".join(f"{row['name']}: {row['reason']}" for row in quarantine[:3])
    limit = f"at most {max_bad_fraction:.1%}" if good else "at least one good picture"
    raise InputError(
        f"{bad} of {total} {what} of {spec} cannot be used ({limit} allowed). "
        f"The first: {examples}. Mend or remove them, or raise `max_bad_fraction`"
    )


def check_limits(limit: int | None, max_bad_fraction: float) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be >= 1, got {limit}; leave it out to take every picture")
    if not 0 <= max_bad_fraction <= 1:
        raise InputError(f"`max_bad_fraction` must lie in [0, 1], got {max_bad_fraction}")


def changed(name: str, reason: str) -> InputError:
    """The error for a picture that was good when it was tried."""
    return InputError(
        f"{name} was readable when the run began, now: {reason}; "
        "leave the data alone while it is being used"
    )
