"""Which items stand for a whole set."""

from __future__ import annotations


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` (None: all) of 0 .. count - 1, all different and evenly spaced, first and
    last included. The first N of a sorted folder may all be of one class."""
    number = count if limit is None else min(limit, count)
    if number < 2:
        return [0] * number
    return [round(i * (count - 1) / (number - 1)) for i in range(number)]
