"""The rooms of the house, the arrows between them, and what importing must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from latent_robust.core import OBJECTIVES

ROOT = Path(__file__).parent.parent
COMMON = {"__init__", "errors", "files", "lazy", "limits", "pages", "subset"}
ROOMS = {"core", "data", "audit", "training", "evaluation"}
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "audit": {"core", "data"},
    "training": {"core"},
    "evaluation": {"core"},
    "latent": ROOMS,
    "pixel": ROOMS,
    "commands": ROOMS | {"latent", "pixel"},
    **{name: set() for name in COMMON},
    "__init__": {"core"},  # what type checkers see
}
PATHS = sorted([*ROOT.glob("latent_robust/**/*.py"), *ROOT.glob("pixel/**/*.py")])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PATHS}


def room_of(module: str) -> str | None:
    """latent_robust.core.radius -> core; pixel.session -> pixel; None for what is not ours."""
    top, *rest = module.split(".")
    if top == "pixel":
        return "pixel"
    if top == "latent_robust":
        return rest[0] if rest else "__init__"
    return None


def imports_of(path: Path, *, typing: bool = True) -> set[str]:
    """Absolute names, of modules where a module is imported. typing: those for the type checker
    alone as well."""
    module = module_of(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                found.add(inner if inner in MODULES else name)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    mine = room_of(module_of(path))
    for imported in imports_of(path):
        theirs = room_of(imported)
        if theirs is not None and theirs != mine and theirs not in COMMON:
            assert theirs in MAY_IMPORT[mine], f"{module_of(path)} must not import {imported}"


def test_no_import_circles():
    """Also none that hides within functions; packages' own __init__ files aside."""
    graph = {
        module: {i for i in imports_of(path, typing=False) if i in MODULES}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    done, circles = set(), []

    def walk(module, trail):
        if module in trail:
            circles.append([*trail[trail.index(module) :], module])
        elif module not in done and module in graph:
            for imported in sorted(graph[module] - {module}):
                walk(imported, [*trail, module])
            done.add(module)

    for module in graph:
        walk(module, [])
    assert circles == []


def test_core_needs_torch_alone():
    allowed = {"torch", "latent_robust", "__future__"}
    for path in (ROOT / "latent_robust/core").glob("*.py"):
        for imported in imports_of(path):
            top = imported.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{path.name}: {imported}"


def loaded_by(code: str, names: str) -> str:
    """Which of the modules `names` are loaded after `code`."""
    code = f"{code}\nimport sys; print(*[m for m in {names.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()[-1].strip()


HEAVY = "torch diffusers transformers peft accelerate datasets matplotlib sklearn open_clip"


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import latent_robust", HEAVY) == ""
    assert loaded_by("from latent_robust import EquivariancePenalty", HEAVY) == "torch"


QUICK = {
    "help": ["--help"],
    "all of the help": ["--help-all"],
    "a typo": ["--stpes", "5"],
    "a wrong path": ["--data", "no/such/folder"],
    "a wrong value": ["--steps", "many"],
}


@pytest.mark.parametrize("command", ["train_pixel", "finetune_latent"])
@pytest.mark.parametrize("what", QUICK)
def test_help_and_refusals_load_nothing_heavy(command, what):
    args = [*QUICK[what], *(["--lora"] if command == "finetune_latent" else [])]
    code = (
        f"from latent_robust.commands.{command} import main\n"
        f"try: main({args!r})\nexcept SystemExit: pass"
    )
    assert loaded_by(code, HEAVY) == ""


@pytest.mark.parametrize("args", [["--help"], ["audit", "--help"], ["adit"], []])
def test_the_other_commands_answer_at_once_as_well(args):
    code = (
        "from latent_robust.commands.main import main\n"
        f"try: main({args!r})\nexcept SystemExit: pass"
    )
    assert loaded_by(code, HEAVY) == ""


def test_what_is_true_of_an_objective_stands_in_the_registry():
    """Nothing outside of it compares with an objective's name; other code asks for facts."""
    names = set(OBJECTIVES)
    for module, path in MODULES.items():
        if module in ("latent_robust.core.registry", "latent_robust.core.factory"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                compared = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                text = ast.unparse(node)
                if "sampler" in text:  # one of these is called ddpm, too
                    compared -= {"ddpm"}
                assert not compared & names, f"{path}, line {node.lineno}: {text}"
