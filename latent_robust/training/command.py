"""What every command of the project does around its work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from io import TextIOWrapper

import torch

from latent_robust.errors import Diverged, InputError

INTERRUPTED = 1


def run_command(
    work: Callable[[], int], *, saves_memory: str = "smaller batches or pictures"
) -> int:
    """=>  exit code: 0 done, 2 wrong usage or input, 1 anything else.

    saves_memory: what to try when the memory of the device or of the computer is exhausted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        first_line = next(iter(str(error).splitlines()), "no more can be had")
        print(f"error: out of memory ({first_line}). Try {saves_memory}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def choose_device(name: str) -> str:
    """name: "auto" or a device.  =>  "cuda", "mps" or "cpu". InputError if it is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name} is not available here; use --device auto")
    return name


def _out_of_memory(error: Exception) -> bool:
    """On the CPU torch raises a plain RuntimeError."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)
