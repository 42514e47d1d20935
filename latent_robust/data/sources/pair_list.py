"""What a source of pairs holds, before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from latent_robust.errors import InputError, did_you_mean

# Tried in this order when no caption column is named.
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "title", "tags")


@dataclass
class PairList:
    """read: key -> the stored bytes of an image; raises BadImage. Must survive pickling.

    A pair whose caption cannot be used is in the quarantine, not in the lists.
    """

    read: Callable[[Any], bytes]
    keys: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    quarantine: list[dict] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    ignored: int = 0

    def add(self, key: Any, name: str, caption: Any, repeats: int = 1) -> None:
        """caption: what the source holds, text or not."""
        try:
            text = to_caption(caption)
        except ValueError as error:
            self.refuse(name, f"its caption {error}")
            return
        self.keys.append(key)
        self.names.append(name)
        self.captions.append(text)
        self.repeats.append(repeats)

    def refuse(self, name: str, reason: str) -> None:
        self.quarantine.append({"name": name, "reason": reason})


def to_caption(value: Any) -> str:
    """None: no caption; bytes: UTF-8. Raises ValueError with what is wrong."""
    if value is None:
        return ""
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if isinstance(value, str):
            value.encode()  # JSON can hold half a surrogate pair, at which tokenizers fail
            return value.strip()
    except UnicodeError as error:
        raise ValueError(f"is not UTF-8 text: {error.reason}") from error
    raise ValueError(f"is a {type(value).__name__}, not text")


def to_repeats(value: Any, where: str) -> int:
    """value: a number, its text, or nothing (once). Raises InputError."""
    if value is None or value == "":
        return 1
    try:
        repeats = float(value)
    except (TypeError, ValueError):
        repeats = 0.0
    if not (repeats >= 1 and repeats.is_integer()):  # NaN neither
        raise InputError(
            f"{where}: repeats must be a whole number >= 1, got {value!r}; "
            "to leave an image out, remove it"
        )
    return int(repeats)


def find_caption_column(columns: Iterable[str], wanted: str | None, where: str) -> str:
    """The column called `wanted`, else the first of CAPTION_COLUMNS. Raises InputError."""
    columns = sorted(columns)
    there = f"there are: {', '.join(columns) or 'none'}"
    if wanted is not None:
        if wanted in columns:
            return wanted
        near = did_you_mean(wanted, columns) or ";"
        raise InputError(f"no caption column {wanted!r} in {where}{near} {there}")
    for column in CAPTION_COLUMNS:
        if column in columns:
            return column
    raise InputError(
        f"no caption column in {where} ({', '.join(CAPTION_COLUMNS)}); {there}; "
        "name it with `caption_column`"
    )
