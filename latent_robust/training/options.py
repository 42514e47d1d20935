"""From a command line and a YAML file to a validated configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from latent_robust.errors import InputError, did_you_mean

Config = TypeVar("Config", bound=BaseModel)
WHOLE = "a text that is not cut at its commas"  # to annotate a field with
_ALL = "; --help lists the valid ones"


def parse_options(
    config_class: type[Config],
    argv: list[str],
    *,
    prog: str,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """Options win over `--config FILE`, which wins over `values` and these over the defaults.

    Raises InputError for an unknown key or option (with the nearest valid one), a wrong type or
    range, or an unreadable file.
    """
    argv, texts = _take_whole_texts(_complete_resume(argv), config_class)
    path = peek(argv, "config").config
    values = {**values, **(read_yaml(Path(path), config_class) if path else {}), **texts}

    class Options(config_class, BaseSettings):
        __doc__ = config_class.__doc__
        model_config = SettingsConfigDict(
            extra="forbid",
            cli_prog_name=prog,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_exit_on_error=False,
            cli_hide_none_type=True,
        )

        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, **others):
            return (init_settings,)  # no environment variables: a run is what its files say

    try:
        command_line = CliSettingsSource(Options, cli_parse_args=argv, formatter_class=_Help)
        options = Options(_cli_settings_source=command_line, **values)
    except SettingsError as error:
        raise InputError(_explain_unknown(str(error), argv, config_class)) from None
    except ValidationError as error:
        raise InputError(explain(error)) from None
    return validate(
        config_class, {name: getattr(options, name) for name in config_class.model_fields}
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says nothing of a default that is no value."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return (action.help or "").replace(" (default: null)", "")


def validate(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Raises InputError for a wrong type or range, or settings that do not go together."""
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def peek(argv: list[str], *names: str) -> argparse.Namespace:
    """The values of a few options, None where they are not given, before all are validated."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        finder.add_argument(f"--{name}")
    return finder.parse_known_args(_complete_resume(argv))[0]


def read_yaml(path: Path, config_class: type[BaseModel]) -> dict[str, Any]:
    """The mapping in a YAML file, all keys of which are fields of `config_class`."""
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


def explain(error: ValidationError) -> str:
    """One line per wrong value: where, what was wrong, what it was."""
    lines = {}
    for item in error.errors():
        if not item["loc"]:
            lines[item["msg"]] = item["msg"].removeprefix("Value error, ")
            continue
        name = str(item["loc"][0])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        lines.setdefault(name, f"`{name}` = {item['input']!r}: {message}")
    return "\n".join(lines.values())


def _complete_resume(argv: list[str]) -> list[str]:
    """`--resume` without a value means `--resume auto`."""
    completed = []
    for position, word in enumerate(argv):
        completed.append(word)
        following = argv[position + 1 : position + 2]
        if word == "--resume" and (not following or following[0].startswith("--")):
            completed.append("auto")
    return completed


def _take_whole_texts(
    argv: list[str], config_class: type[BaseModel]
) -> tuple[list[str], dict[str, list[str]]]:
    """=>  `argv` without the options whose field is marked WHOLE, and what these say, each a text
    or a JSON list of texts: others are cut at commas, which sentences have, and unescaped."""
    whole = {
        "--" + name.replace("_", "-"): name
        for name, field in config_class.model_fields.items()
        if WHOLE in field.metadata
    }
    left, taken, words = [], {}, iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in whole:
            left.append(word)
            continue
        value = value if equals else next(words, None)
        if value is None or (value.startswith("--") and not equals):
            left += [option, *([] if value is None else [value])]  # argparse says what is missing
        else:
            taken.setdefault(whole[option], []).extend(_texts(value))
    return left, taken


def _texts(value: str) -> list[str]:
    try:
        texts = json.loads(value)
    except ValueError:
        return [value]
    return texts if isinstance(texts, list) else [value]


def _explain_unknown(message: str, argv: list[str], config_class: type[BaseModel]) -> str:
    known = {"--" + name.replace("_", "-") for name in config_class.model_fields}
    for word in argv:
        option = word.partition("=")[0]
        if option.startswith("--") and option.replace("--no-", "--") not in known:
            return f"unknown option {option}{did_you_mean(option, known) or _ALL}"
    return message.removeprefix("error parsing CLI: ")
