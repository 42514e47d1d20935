"""Errors that end a command with a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong usage or input; the message says the remedy. The command prints it; exit code 2."""


class Diverged(RuntimeError):
    """Several training steps close together had a non-finite loss or gradient. Exit code 1."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the valid name nearest to `given`, or "" if none is similar."""
    nearest = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
