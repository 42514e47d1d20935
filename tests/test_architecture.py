"""The arrows between the packages, and what importing must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {"core", "data", "training", "evaluation"}
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "training": {"core"},
    "evaluation": {"core"},
    "latent": SHARED,
    "pixel": SHARED,
    "cli": SHARED | {"latent", "data_commands", "probes"},
    "data_commands": SHARED | {"latent"},
    "probes": SHARED,
    "errors": set(),
    "files": set(),
    "__init__": {"core"},
}


def part_of(module: str) -> str | None:
    """latent_robust.core.radius -> core; latent_robust.cli -> cli; pixel.train -> pixel."""
    parts = module.split(".")
    if parts[0] == "pixel":
        return "pixel"
    if parts[0] == "latent_robust":
        return parts[1] if len(parts) > 1 else "__init__"
    return None


def imports_of(path: Path, module: str) -> set[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from latent_robust import cli` imports a module, not a name of the package.
            found |= {f"{name}.{a.name}" for a in node.names} if name == "latent_robust" else {name}
    return found


MODULES = sorted([*ROOT.glob("latent_robust/**/*.py"), *ROOT.glob("pixel/**/*.py")])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = part_of(module)
    for imported in imports_of(path, module):
        theirs = part_of(imported)
        if theirs is None or theirs in (mine, "errors", "files"):
            continue
        assert theirs in MAY_IMPORT[mine], f"{module} must not import {imported}"


def test_core_needs_torch_alone():
    allowed = {"torch", "latent_robust", "__future__"}
    for path in (ROOT / "latent_robust/core").glob("*.py"):
        module = f"latent_robust.core.{path.stem}".removesuffix(".__init__")
        for imported in imports_of(path, module):
            top = imported.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{path.name}: {imported}"


def test_importing_the_package_is_light():
    heavy = "diffusers transformers peft accelerate datasets matplotlib sklearn open_clip"
    code = f"import sys, latent_robust;print([m for m in {heavy.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
