"""Import the public names of a package from their modules on first use.

Importing torch takes seconds, diffusers and torchvision take longer. A command that only prints its
help must not load them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """=>  the `__getattr__` of a package.

    package: its `__name__`. modules: public name -> module, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get
