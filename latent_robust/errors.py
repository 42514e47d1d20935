"""Errors that end a command with a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong usage or input, and the remedy. The command line prints it and exits with code 2."""


class Diverged(RuntimeError):
    """Several training steps in close succession had a non-finite loss or gradient. Exit code 1."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or "" if nothing is near."""
    near = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
