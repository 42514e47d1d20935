"""What takes long to find and is the same the next time, kept beside the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latent_robust.files import write_json


def memoize_json(
    file: Path | None, facts: Any, find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `find` gives, or gave when it was asked with the same facts.

    file: None where there is no cache; facts: all that it depends on, as JSON. What it finds must
    be JSON, too. A damaged file is as good as none.
    """
    if file is None:
        return find()
    key = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    known = _known(file)
    if key not in known:
        known[key] = find()
        write_json(file, {**_known(file), key: known[key]})  # another run may have written
    return known[key]


def _known(file: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
