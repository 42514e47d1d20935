"""From a command line and a YAML file to a validated configuration.

Every field of a configuration is a key of the YAML file. Unless it is `yaml_only`, it is also an
option of the same name. This module does not import torch, so help and errors appear at once.
"""

from __future__ import annotations

import argparse
import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from latent_robust import __version__
from latent_robust.errors import InputError, did_you_mean

Config = TypeVar("Config", bound=BaseModel)

# Groups of options, in the order in which help shows them.
GROUPS = (
    "what you need",
    "how strong",
    "LoRA",
    "memory and speed",
    "watching",
    "experiments",
)
_ALL = "; --help-all lists the valid ones"


@dataclass(frozen=True)
class Shown:
    """How a field appears on the command line.

    group: one of GROUPS. metavar: the word for its value in help, by default from its type.
    common: shown by `--help`; others only by `--help-all`.
    yaml_only: a key of the YAML file but no option; for settings that were measured not to matter.
    sentences: its values are texts, which are not split at commas.
    """

    group: str
    metavar: str = ""
    common: bool = False
    yaml_only: bool = False
    sentences: bool = False


def setting(
    default: Any,
    help: str,
    group: str,
    metavar: str = "",
    *,
    common: bool = False,
    yaml_only: bool = False,
    sentences: bool = False,
    **constraints: Any,
) -> Any:
    """A field of a configuration. help: one sentence. constraints: pydantic's, such as ge=0."""
    field = Field(default, description=help, **constraints)
    field.metadata.append(Shown(group, metavar, common, yaml_only, sentences))
    return field


def shown(field: FieldInfo) -> Shown:
    """How a field made by `setting` appears on the command line."""
    return next(item for item in field.metadata if isinstance(item, Shown))


def option_of(name: str) -> str:
    """The option of a field: batch_size => --batch-size."""
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------------- parsing


def parse_options(
    config_class: type[Config],
    argv: list[str],
    *,
    prog: str,
    values: Mapping[str, Any] = MappingProxyType({}),
    examples: str = "",
) -> Config:
    """Options override `--config FILE`, which overrides `values`, which override the defaults.

    Raises InputError for an unknown key or option (and names the nearest valid one), a wrong type
    or range, or an unreadable file. `--help`, `--help-all` and `--version` print and exit.
    """
    parser = make_parser(config_class, prog=prog, examples=examples)
    args, unknown = parser.parse_known_args(_complete_resume(argv))
    if unknown:
        raise InputError(_explain_unknown(unknown[0], config_class))
    given = {name: _value(name, text, config_class) for name, text in vars(args).items()}
    file = given.get("config")
    values = {**values, **(read_yaml(Path(file), config_class) if file else {}), **given}
    return validate(config_class, values)


def validate(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Raises InputError for a wrong type or range, or for settings that exclude each other."""
    try:
        return config_class.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(explain(error)) from None


def peek(argv: list[str], *names: str) -> argparse.Namespace:
    """The values of a few options, None if absent, before the others are parsed and validated."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        finder.add_argument(option_of(name))
    return finder.parse_known_args(_complete_resume(argv))[0]


def given_options(argv: list[str]) -> set[str]:
    """The names of the fields that `argv` sets."""
    words = (word[2:].partition("=")[0] for word in argv if word.startswith("--"))
    return {word.removeprefix("no-").replace("-", "_") for word in words}


def read_yaml(path: Path, config_class: type[BaseModel]) -> dict[str, Any]:
    """The key-value pairs of a YAML file. Raises InputError if it is unreadable, is not valid YAML,
    or has a key that is not a field of `config_class`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --config {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `key: value` lines, got a {type(values).__name__}")
    for key in values:
        if key not in config_class.model_fields:
            hint = did_you_mean(str(key), config_class.model_fields)
            raise InputError(f"unknown key `{key}` in {path}{hint or _ALL}")
    return values


def dump(config: BaseModel) -> str:
    """YAML text, in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def explain(error: ValidationError) -> str:
    """One line per wrong value: its name, the value, what is wrong with it."""
    lines: dict[str, str] = {}
    for item in error.errors():
        if not item["loc"]:
            lines[item["msg"]] = item["msg"].removeprefix("Value error, ")
            continue
        name = str(item["loc"][0])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        lines.setdefault(name, f"`{name}` = {item['input']!r}: {message}")
    return "\n".join(lines.values())


def _complete_resume(argv: list[str]) -> list[str]:
    """`--resume` without a value becomes `--resume auto`."""
    completed = []
    for position, word in enumerate(argv):
        completed.append(word)
        following = argv[position + 1 : position + 2]
        if word == "--resume" and (not following or following[0].startswith("--")):
            completed.append("auto")
    return completed


def _value(name: str, text: Any, config_class: type[BaseModel]) -> Any:
    """The value of a field from an option's text; pydantic then converts it to the field's type."""
    field = config_class.model_fields[name]
    if isinstance(text, list):  # options that may be repeated
        return [part for one in text for part in _parts(one, shown(field).sentences)]
    if text == "null" and type(None) in get_args(field.annotation):
        return None
    return text


def _parts(text: str, sentences: bool) -> list[Any]:
    """The items of a JSON list, or the texts between commas. A sentence is one item."""
    try:
        parts = json.loads(text)
    except ValueError:
        parts = None
    if isinstance(parts, list):
        return parts
    return [text] if sentences else [part.strip() for part in text.split(",")]


def _explain_unknown(word: str, config_class: type[BaseModel]) -> str:
    option = word.partition("=")[0]
    if not option.startswith("--"):
        return f"unexpected argument {word!r}: every setting is an option, --NAME VALUE{_ALL}"
    name = option.removeprefix("--").replace("-", "_")
    fields = config_class.model_fields
    if name in fields and shown(fields[name]).yaml_only:
        return f"{option} is a key of the YAML file only: write `{name}: VALUE` into --config FILE"
    valid = {option_of(name) for name, field in fields.items() if not shown(field).yaml_only}
    return f"unknown option {option}{did_you_mean(option, valid) or _ALL}"


# ---------------------------------------------------------------------- help


class _Parser(argparse.ArgumentParser):
    full: argparse.ArgumentParser  # the same parser, whose help shows all options

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


class _HelpAll(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, _Parser)
        parser.full.print_help()
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)


def make_parser(
    config_class: type[BaseModel], *, prog: str, examples: str = "", everything: bool = False
) -> argparse.ArgumentParser:
    """examples: the end of the help text. everything: `--help` shows all options."""
    parser = _Parser(
        prog=prog,
        description=(config_class.__doc__ or "").strip(),
        epilog=examples,
        usage=f"{prog} [options]",
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    fields = config_class.model_fields
    for name in dict.fromkeys([*getattr(config_class, "HELP_FIRST", ()), *fields]):
        if not shown(fields[name]).yaml_only:
            _add(groups[shown(fields[name]).group], name, fields[name], everything)
    more = parser.add_argument_group("more")
    more.add_argument("-h", "--help", action="help", help="show the most used options")
    more.add_argument("--help-all", nargs=0, action=_HelpAll, help="show all options")
    more.add_argument(
        "--version", action="version", version=f"{prog} {__version__}", help="show the version"
    )
    parser.full = (
        parser
        if everything
        else make_parser(config_class, prog=prog, examples=examples, everything=True)
    )
    return parser


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo, everything: bool) -> None:
    visible = everything or shown(field).common
    help = _help(field) if visible else argparse.SUPPRESS
    option = option_of(name)
    if field.annotation is bool:
        negative = f"--no-{option[2:]}"
        for flag, value in ((option, True), (negative, False)):
            # Help shows only the one that changes the default.
            shown_help = help if value is not field.default else argparse.SUPPRESS
            group.add_argument(flag, dest=name, action="store_const", const=value, help=shown_help)
        return
    action = "append" if _is_tuple(field.annotation) else "store"
    metavar = shown(field).metavar or _metavar(field.annotation)
    group.add_argument(option, dest=name, metavar=metavar, help=help, action=action)


def _help(field: FieldInfo) -> str:
    text, default = field.description or "", field.default
    choices = [str(c) for one in _alternatives(field.annotation) for c in _choices(one)]
    if len(choices) > 1 and not set(choices) & set(re.findall(r"[\w-]+", text)):
        text += f": {', '.join(choices)}"
    nothing = default is None or default == "" or isinstance(default, bool)
    if not nothing and "default" not in text:
        text += f" (default: {_written(default)})"
    return text.replace("%", "%%")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_tuple(annotation: Any) -> bool:
    return any(get_origin(one) is tuple for one in _alternatives(annotation))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _metavar(annotation: Any) -> str:
    for one in _alternatives(annotation):
        if get_origin(one) is Literal:
            return "NAME"
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return next((names[one] for one in _alternatives(annotation) if one in names), "VALUE")
