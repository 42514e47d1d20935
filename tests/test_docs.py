"""docs/ says what is so: its commands parse, its options, messages and files exist."""

import argparse
import ast
import dataclasses
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from prose import code_lines, inline_code, sentences

from latent_robust.commands import finetune_latent, train_pixel
from latent_robust.commands.main import COMMANDS
from latent_robust.core import OBJECTIVES, NoiseProcess, peers
from latent_robust.data.contamination.kinds import CORRUPTIONS
from latent_robust.latent.base import families
from latent_robust.training.options import make_parser, option_of, shown

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

import docs_commands  # noqa: E402

PAGES = sorted(DOCS.glob("*.md"))
TEXTS = {path.name: path.read_text() for path in [ROOT / "README.md", *PAGES]}
TRAINING = {module.COMMAND.prog: module.COMMAND for module in (train_pixel, finetune_latent)}
MODULES = {command.module: prog for prog, command in TRAINING.items()}
# Options of programs that are not ours.
FOREIGN = {
    "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port",
    "--shutdown-timeout", "--quick", "--results",
}  # fmt: skip


def test_the_page_of_commands_is_up_to_date():
    """Otherwise: python scripts/docs_commands.py"""
    assert TEXTS["commands.md"] == docs_commands.render()


# ------------------------------------------------------------------ commands


def subcommand_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False, add_help=False)
    COMMANDS[name].add_options(parser)
    return parser


def shown_commands() -> list[str]:
    """Lines that a reader may type."""
    lines = [line for text in TEXTS.values() for line in code_lines(text)]
    first = (*TRAINING, "latent-robust", "torchrun", "python scripts/", "bash scripts/")
    # The examples of help texts have an explanation beside them.
    return sorted({re.split(r" {3,}(?!#)", line)[0] for line in lines if line.startswith(first)})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_that_is_shown_parses(line):
    program, *args = shlex.split(line, comments=True)
    for arg in args:
        if arg.startswith(("configs/", "scripts/", "examples/")):
            assert (ROOT / arg).exists(), arg
    if program == "torchrun":
        program = MODULES[args[args.index("-m") + 1]]
        args = args[args.index("-m") + 2 :]
    if program in TRAINING:
        args = [arg for arg in args if arg != "--help"]
        config_class = TRAINING[program].config_class
        _, unknown = make_parser(config_class, prog=program).parse_known_args(args)
        assert unknown == []
    elif program == "latent-robust":
        subcommand_parser(args[0]).parse_args(args[1:])


@cache
def known_options() -> set[str]:
    known = {"--help", "--help-all", "--version"}
    for command in TRAINING.values():
        for name, field in command.config_class.model_fields.items():
            if not shown(field).yaml_only:
                known |= {option_of(name), f"--no-{option_of(name)[2:]}"}
    for name in COMMANDS:
        for action in subcommand_parser(name)._actions:
            known |= set(action.option_strings)
    return known


@pytest.mark.parametrize("page", TEXTS)
def test_every_option_that_is_named_exists(page):
    words = " ".join(inline_code(TEXTS[page])).split()
    named = {re.match(r"--[a-z0-9-]+", word)[0] for word in words if word.startswith("--")}
    assert named <= known_options() | FOREIGN


def test_every_objective_is_explained():
    for name in OBJECTIVES:
        assert f"| `{name}` |" in TEXTS["choosing-an-objective.md"]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_is_in_the_table(kind):
    (row,) = (line for line in TEXTS["data-formats.md"].splitlines() if f"| `{kind}` |" in line)
    parameters = {
        field.name
        for field in dataclasses.fields(CORRUPTIONS[kind])
        if field.init and field.name != "fraction"
    }
    named = {re.split("[=:]", code)[0] for code in inline_code(row.split("|")[2])}
    assert parameters <= named


# ------------------------------------------------------------------ walk-throughs


def first_class(page: str, module: object) -> type:
    """The class that a page adds to a module, made within it."""
    code = re.search(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)[1]
    names = dict(vars(module))
    exec(code, names)
    return names[re.search(r"class (\w+)", code)[1]]


def test_the_family_of_the_walk_through_is_complete():
    new = first_class("adding-a-family.md", families)
    assert issubclass(new, families.Family)
    assert not new.__abstractmethods__
    differing = set(re.findall(r"^\| `(\w+)` \|", TEXTS["adding-a-family.md"], re.MULTILINE))
    assert differing <= set(dir(families.Family))


def test_the_objective_of_the_walk_through_is_the_absolute_error_of_large_errors():
    process = NoiseProcess.flow()
    objective = first_class("adding-an-objective.md", peers)(process)
    sample, noise = torch.randn(2, 4, 1, 8, 8)
    loss = objective(lambda noisy, t, rows: noise - sample + 100, sample, process.times[:4], noise)
    assert torch.allclose(loss.denoising, torch.full((4,), 100 - 0.1), atol=1e-2)


# ------------------------------------------------------------------ messages


@cache
def messages() -> list[str]:
    """Every text of the code, with … for what is filled in."""
    found = []
    for path in [*ROOT.glob("latent_robust/**/*.py"), *ROOT.glob("pixel/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "…") for part in node.values)
                found.append("".join(p if isinstance(p, str) else "…" for p in parts))
    return found


def quoted_messages() -> list[str]:
    rows = re.findall(r"^\| `(.+?)` \|", TEXTS["troubleshooting.md"], flags=re.MULTILINE)
    assert len(rows) > 30
    return rows


@pytest.mark.parametrize("message", quoted_messages())
def test_every_message_is_one_that_is_printed(message):
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    assert any(pattern.search(text) for text in messages())


# ------------------------------------------------------------------ files


def files_of_the_tree() -> set[str]:
    """The Python files that the tree in architecture.md names."""
    trees = re.findall(r"```text\n(latent_robust/\n.*?)```", TEXTS["architecture.md"], re.DOTALL)
    found, folders = set(), []
    for line in "".join(trees).splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        first = line.split()[0]
        if first.endswith("/"):
            folders.append(first.rstrip("/"))
        else:
            found |= {"/".join([*folders, name]) for name in re.findall(r"\w+\.py\b", line)}
    return found


def test_the_architecture_names_every_module_and_no_other():
    there = {
        path.relative_to(ROOT).as_posix()
        for package in ("latent_robust", "pixel")
        for path in (ROOT / package).glob("**/*.py")
    }
    assert files_of_the_tree() == there


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_is_named_exists(page):
    """Of those named by a path of this repository, in the text."""
    places = ("latent_robust/", "pixel/", "scripts/", "tests/", "examples/", "configs/")
    for code in inline_code(TEXTS[page]):
        if code.startswith(places) and " " not in code and "*" not in code and "nova" not in code:
            assert (ROOT / code).exists(), code


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_pages(page):
    """mkdocs checks this too, and the anchors; README is not one of its pages."""
    folder = ROOT if page == "README.md" else DOCS
    for target in re.findall(r"\]\(([^)#\s]+)", TEXTS[page]):
        assert target.startswith("https://") or (folder / target).exists(), target


@pytest.mark.parametrize("page", TEXTS)
def test_no_sentence_is_long(page):
    assert [one for one in sentences(TEXTS[page]) if len(one.split()) > 35] == []
