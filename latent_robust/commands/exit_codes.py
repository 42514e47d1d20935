"""Run a command: error messages instead of tracebacks, and exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from io import TextIOWrapper

from latent_robust.errors import Diverged, InputError

DONE, FAILED, WRONG_INPUT = 0, 1, 2
INTERRUPTED = FAILED


def run_command(work: Callable[[], int], *, saves_memory: str = "smaller batches or images") -> int:
    """=>  exit code: 0 done, 2 wrong usage or input, 1 anything else.

    saves_memory: advice for the message when a device or the computer runs out of memory."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        first_line = next(iter(str(error).splitlines()), "no details")
        print(f"error: out of memory ({first_line}). Try {saves_memory}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _out_of_memory(error: Exception) -> bool:
    """torch raises OutOfMemoryError for a device, but a plain RuntimeError for the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
