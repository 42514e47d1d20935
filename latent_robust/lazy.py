"""Names of a package that are imported from their modules when they are first used.

torch takes seconds to import, diffusers and torchvision more. A command that only prints its help
must not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """package: its `__name__`; modules: public name -> module, relative to the package.
    =>  the package's `__getattr__`."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get
