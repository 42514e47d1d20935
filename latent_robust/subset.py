"""Choose a few items that represent a whole set."""

from __future__ import annotations


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` (None: all) different indices from 0 to count - 1, first and last included.

    Evenly spaced, because the first N files of a sorted folder may all belong to one class.
    """
    number = count if limit is None else min(limit, count)
    if number < 2:
        return [0] * number
    return [round(i * (count - 1) / (number - 1)) for i in range(number)]
