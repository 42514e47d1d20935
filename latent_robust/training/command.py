"""What every command of the project does around its work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from latent_robust.errors import Diverged, InputError

INTERRUPTED = 1


def run_command(work: Callable[[], int]) -> int:
    """=>  exit code: 0 done, 2 wrong usage or input, 1 anything else."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
