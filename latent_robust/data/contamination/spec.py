"""Parse `--contamination` into corruptions.

One syntax serves options and YAML files, and a typo gets the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from latent_robust.errors import InputError, did_you_mean

from .corruption import Corruption
from .kinds import CORRUPTIONS

_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"


def parse_contamination(specs: str | Sequence[str | dict[str, Any]]) -> list[Corruption]:
    """Parse corruptions, which are applied in the order of the list.

    specs: a list of texts such as `gaussian:fraction=0.9,sigma=0.2` (or `sigma=0.0-0.3`) and of
    dicts such as {"kind": "gaussian", "fraction": 0.9, "sigma": [0.0, 0.3]}. Or one text with the
    corruptions separated by semicolons; `none` means no corruption.

    Raises InputError for an unknown kind or parameter, and for a value out of range.
    """
    if isinstance(specs, dict):
        raise InputError(f"contamination must be a list of corruptions, got {specs!r}")
    if isinstance(specs, str):
        specs = [] if specs == "none" else filter(None, map(str.strip, specs.split(";")))
    return [_build(_from_text(spec) if isinstance(spec, str) else spec) for spec in specs]


def _from_text(spec: str) -> dict[str, Any]:
    kind, _, rest = spec.partition(":")
    row: dict[str, Any] = {"kind": kind.strip()}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"{part!r} in {spec!r} is not of the form NAME=VALUE")
        if name in row:
            raise InputError(f"`{name}` is given twice in {spec!r}")
        row[name] = _value(value)
    return row


def _value(text: str) -> Any:
    """A number, a pair LOW-HIGH, true or false, else the text. Quotes keep anything as text."""
    if quoted := re.fullmatch(r"(['\"])(.*)\1", text):
        return quoted[2]
    if text in ("true", "false"):
        return text == "true"
    pair = re.fullmatch(f"({_NUMBER})-({_NUMBER})", text)
    try:
        if pair:
            return [float(number) for number in pair.groups()]
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        return text


def _build(row: dict[str, Any]) -> Corruption:
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise InputError(
            f"a corruption needs a `kind`, one of {', '.join(CORRUPTIONS)}, got {row!r}"
        )
    given = dict(row)
    kind = given.pop("kind")
    if kind not in CORRUPTIONS:
        near = did_you_mean(kind, CORRUPTIONS)
        raise InputError(
            f"unknown corruption {kind!r}{near or ';'} valid are {', '.join(CORRUPTIONS)}"
        )
    valid = {f.name: f for f in fields(CORRUPTIONS[kind]) if f.init}
    for name in given:
        if name not in valid:
            near = did_you_mean(str(name), valid)
            raise InputError(
                f"{kind} has no parameter {name!r}{near or ';'} valid are {', '.join(valid)}"
            )
    missing = [name for name, f in valid.items() if f.default is MISSING and name not in given]
    if missing:
        raise InputError(f"{kind} needs {', '.join(f'`{name}`' for name in missing)}")
    return CORRUPTIONS[kind](**given)
