"""The packages import their public names on first use; type checkers read a second list of them."""

import ast
from importlib import import_module
from pathlib import Path

import pytest


def names_for_type_checkers(package) -> dict[str, str]:
    """Name -> module of the explicit re-exports in the package's TYPE_CHECKING block."""
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING"
    )
    exports = {}
    for statement in block.body:
        for alias in statement.names:
            assert alias.asname == alias.name, "only `import X as X` is a re-export"
            exports[alias.name] = statement.module
    return exports


@pytest.mark.parametrize("name", ["latent_robust", "latent_robust.core"])
def test_type_checkers_are_given_the_names_that_the_package_has(name):
    package = import_module(name)
    assert names_for_type_checkers(package) == package._MODULES
    assert set(package.__all__) - {"__version__"} == package._MODULES.keys()
    for public, module in package._MODULES.items():
        assert getattr(package, public) is getattr(import_module(f".{module}", name), public)


@pytest.mark.parametrize("name", ["latent_robust", "latent_robust.core"])
def test_a_name_that_the_package_does_not_have_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Objektive'"):
        _ = import_module(name).Objektive
