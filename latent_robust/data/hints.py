"""The nearest valid name, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or "" when nothing is near."""
    near = get_close_matches(given, list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
