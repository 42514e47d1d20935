"""Keep slow results in a JSON file next to the cache, so that a later run reuses them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latent_robust.files import write_json


def memoize_json(
    file: Path | None, inputs: Any, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of `compute`, or the stored result of an earlier call with the same inputs.

    file: where results are stored, None to store nothing; inputs: everything that the result
    depends on, as JSON. The result must be JSON, too. A damaged file is replaced.
    """
    if file is None:
        return compute()
    key = hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()
    results = _read(file)
    if key not in results:
        results[key] = compute()
        write_json(file, {**_read(file), key: results[key]})  # another run may have written
    return results[key]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Empty if the file is absent or damaged."""
    try:
        results = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}
