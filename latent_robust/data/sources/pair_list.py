"""The pairs that a source lists, before any image is decoded.

Captions and repeats are checked here, so that every source treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from latent_robust.errors import InputError, did_you_mean

# Tried in this order if no caption column is given.
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "title", "tags")


@dataclass
class PairList:
    """Keys, names, captions and repeats of the pairs of a source, as parallel lists.

    read: key -> the stored bytes of an image; raises BadImage; must be picklable. A pair whose
    caption cannot be used is in the quarantine, not in the lists; refused: its key, its name and
    why.
    """

    read: Callable[[Any], bytes]
    keys: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    quarantine: list[dict] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    ignored: int = 0
    refused: list[tuple[Any, str, str]] = field(default_factory=list)

    def add(self, key: Any, name: str, caption: Any, repeats: int = 1) -> None:
        """caption: as the source stores it, of any type; repeats: >= 1."""
        try:
            text = to_caption(caption)
        except ValueError as error:
            self.refuse(name, f"its caption {error}")
            self.refused.append((key, name, f"its caption {error}"))
            return
        self.keys.append(key)
        self.names.append(name)
        self.captions.append(text)
        self.repeats.append(repeats)

    def refuse(self, name: str, reason: str) -> None:
        self.quarantine.append({"name": name, "reason": reason})


def to_caption(value: Any) -> str:
    """The caption as text, stripped. value: None (no caption, ""), text, or bytes in UTF-8.

    Raises ValueError that says what the caption is instead.
    """
    if value is None:
        return ""
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if isinstance(value, str):
            value.encode()  # fails on a lone surrogate, which JSON allows and tokenizers do not
            return value.strip()
    except UnicodeError as error:
        raise ValueError(f"is not UTF-8 text: {error.reason}") from error
    raise ValueError(f"is a {type(value).__name__}, not text")


def to_repeats(value: Any, where: str) -> int:
    """value: a number, text of a number, or None or "" (both mean 1). Raises InputError."""
    if value is None or value == "":
        return 1
    try:
        repeats = float(value)
    except (TypeError, ValueError):
        repeats = 0.0
    if not (repeats >= 1 and repeats.is_integer()):  # also refuses NaN
        raise InputError(
            f"{where}: repeats must be a whole number >= 1, got {value!r}; "
            "to leave an image out, remove it"
        )
    return int(repeats)


def find_caption_column(columns: Iterable[str], wanted: str | None, where: str) -> str:
    """Returns `wanted`, or without it the first of CAPTION_COLUMNS that is in `columns`.

    where: the file, for the message. Raises InputError if the column is missing.
    """
    columns = sorted(columns)
    available = f"available columns: {', '.join(columns) or 'none'}"
    if wanted is not None:
        if wanted in columns:
            return wanted
        near = did_you_mean(wanted, columns) or ";"
        raise InputError(f"no caption column {wanted!r} in {where}{near} {available}")
    for column in CAPTION_COLUMNS:
        if column in columns:
            return column
    raise InputError(
        f"no caption column ({', '.join(CAPTION_COLUMNS)}) in {where}; {available}; "
        "choose one with `caption_column`"
    )
