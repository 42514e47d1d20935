#!/usr/bin/env python
"""Write docs/commands.md: the text of docs/gen/commands.md, with the tables of all options.

    python scripts/docs_commands.py        # after a change of an option, its help, or the text

In the text `{{ NAME }}` stands for the tables of a command. tests/test_docs.py fails while the page
is not up to date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latent_robust.commands import finetune_latent, train_pixel
from latent_robust.commands.main import COMMANDS
from latent_robust.commands.training import TrainCommand
from latent_robust.training.options import GROUPS, make_parser, option_of, shown

DOCS = Path(__file__).parent.parent / "docs"
TEXT, PAGE = DOCS / "gen/commands.md", DOCS / "commands.md"
NOTICE = (
    "<!-- Written by scripts/docs_commands.py; edit docs/gen/commands.md or the options. -->\n\n"
)


def render() -> str:
    """=>  the page. KeyError for a command that the text does not have, or that does not exist."""
    tables = {"yaml": yaml_keys()}
    for module in (train_pixel, finetune_latent):
        tables[module.COMMAND.prog] = "".join(training_command(module.COMMAND))
    for name, module in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"latent-robust {name}", add_help=False)
        module.add_options(parser)
        tables[name] = examples(module.EXAMPLES) + subcommand_table(parser)
    page = re.sub(r"{{ ([\w-]+) }}\n+", lambda place: tables.pop(place[1]), TEXT.read_text())
    if tables:
        raise KeyError(f"{TEXT} has no place for: {', '.join(tables)}")
    return NOTICE + page.rstrip() + "\n"


def training_command(command: TrainCommand) -> Iterator[str]:
    yield examples(command.examples)
    yield "Options in bold are those that `--help` shows.\n\n"
    fields = command.config_class.model_fields
    names = [n for n in order_of_help(command.config_class) if not shown(fields[n]).yaml_only]
    names.sort(key=lambda name: not shown(fields[name]).common)
    parser = make_parser(command.config_class, prog=command.prog)
    metavars = {action.dest: action.metavar for action in parser._actions}
    for group in GROUPS:
        rows = [
            option_row(name, fields[name], metavars[name])
            for name in names
            if shown(fields[name]).group == group
        ]
        if rows:
            yield f"### {command.prog}: {group}\n\n"
            yield table(("option", "what it does", "default"), rows)


def examples(text: str) -> str:
    """The end of a help text, as a block of code."""
    lines = text.splitlines()[1:]  # after "examples:"
    return "".join(f"  {line}\n" for line in lines) + "\n"


def yaml_keys() -> str:
    fields: dict[str, FieldInfo] = {}
    for module in (train_pixel, finetune_latent):
        fields |= module.COMMAND.config_class.model_fields
    rows = [
        (f"`{name}`", escape(field.description), default_of(field))
        for name, field in fields.items()
        if shown(field).yaml_only
    ]
    return table(("key", "what it does", "default"), rows)


def order_of_help(config_class: type[BaseModel]) -> list[str]:
    first = getattr(config_class, "HELP_FIRST", ())
    return list(dict.fromkeys([*first, *config_class.model_fields]))


def option_row(name: str, field: FieldInfo, metavar: str | None) -> tuple[str, ...]:
    option, default = option_of(name), default_of(field)
    if field.annotation is bool and field.default:
        option, default = f"--no-{option[2:]}", "off"
    elif field.annotation is not bool:
        option = f"{option} {metavar}".replace("|", "/")
    code = f"**`{option}`**" if shown(field).common else f"`{option}`"
    return code, escape(field.description), default


def default_of(field: FieldInfo) -> str:
    """Empty where the description says it."""
    value = field.default
    if value is None or "default" in (field.description or ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def subcommand_table(parser: argparse.ArgumentParser) -> str:
    actions = [action for group in parser._action_groups for action in group._group_actions]
    rows = [action_row(a) for a in actions if a.dest not in ("help", "version")]
    return table(("argument", "what it does"), rows)


def action_row(action: argparse.Action) -> tuple[str, str]:
    value = action.metavar or "/".join(map(str, action.choices or ()))
    name = next(iter(action.option_strings), "")
    several = "..." if action.nargs == "+" else ""
    written = " ".join(filter(None, [name, value, several])).replace("|", "/")
    text = (action.help or "") % vars(action)
    required = " (required)" if action.required and name else ""
    return f"`{written}`", escape(text) + required


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines) + "\n"


def escape(text: str | None) -> str:
    text = text or ""
    for character in "*|<":
        text = text.replace(character, f"\\{character}")
    return text


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
