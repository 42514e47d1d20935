"""Audit a data set as it is stored: `audit_data`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_robust.data.sources.pair_list import PairList
from latent_robust.data.stored import list_stored
from latent_robust.errors import InputError
from latent_robust.subset import evenly_spaced

from .pictures import texts
from .pictures.findings import DataAudit, remaining_noise
from .pictures.measures import BANDS
from .pictures.repeats import THUMB, Mark, groups, shows_mark
from .pictures.scan import Row, Settings, find_mark_of, scan

MARK_PICTURES = 512  # that are laid over each other
MEASURED = (
    "width", "height", "noise", "jpeg", "blur", "enlarged", "block", "bars", "cut", "clipped",
    "dark", "bright", "gray", "profile", "transparent", "small", "mark",
)  # fmt: skip
# If at least this share of the pictures has colour, one without is a finding.
COLOURED = 0.8
TOKENS = 75  # that CLIP's text encoder reads


def audit_data(
    spec: str,
    *,
    size: int | None = None,
    caption_column: str | None = None,
    limit: int | None = None,
    offline: bool = False,
    workers: int | None = None,
    scan_file: Path | None = None,
) -> DataAudit:
    """Measure all pictures and captions of a data set. Nothing of it is changed.

    spec: a folder, or one of `latent_robust.data.sources.spec.FORMS`. size: side in pixels at which
    the pictures will be trained; without it, what depends on it is not measured. limit: look at the
    first N only. workers: processes, by default one for each core. scan_file: where rows are kept,
    so that an interrupted audit goes on, and the next one measures only what changed.

    Raises InputError for a wrong `spec`, and for data that cannot be read at all.
    """
    if size is not None and size < 1:
        raise InputError(f"`size` must be >= 1, got {size}")
    listed = list_stored(spec, caption_column=caption_column, limit=limit, offline=offline)
    if not listed.keys:
        raise InputError(f"{spec} has no pictures")
    not_measured: dict[str, str] = {}
    some = [listed.keys[i] for i in evenly_spaced(len(listed.keys), MARK_PICTURES)]
    mark, why = find_mark_of(listed.read, some, workers)
    if why:
        not_measured["mark"] = why
    if size is None:
        not_measured["small"] = "the size of training is not known; give --size"
    rows = scan(
        listed.read, listed.keys, listed.names, Settings(size, mark), file=scan_file,
        workers=workers,
    )  # fmt: skip
    return _collect(spec, listed, rows, size, mark, not_measured)


def _collect(
    spec: str,
    listed: PairList,
    rows: Iterator[Row],
    size: int | None,
    mark: Mark | None,
    not_measured: dict[str, str],
) -> DataAudit:
    count = len(listed.keys)
    columns = {key: np.full(count, np.nan, np.float32) for key in MEASURED}
    power = np.zeros((count, BANDS), np.float32)
    hashes, thumbs = np.zeros(count, np.uint64), np.zeros((count, THUMB, THUMB), np.uint8)
    pixels: list[bytes] = [b""] * count
    unreadable: list[dict[str, Any]] = []
    for row in rows:
        index = row["index"]
        if "bad" in row:
            unreadable.append({"index": index, "name": row["name"], "reason": row["bad"]})
            continue
        for key in MEASURED:
            if row.get(key) is not None:
                columns[key][index] = row[key]
        power[index] = row["power"]
        hashes[index], pixels[index] = int(row["hash"], 16), bytes.fromhex(row["pixels"])
        thumbs[index] = np.frombuffer(bytes.fromhex(row["thumb"]), np.uint8).reshape(THUMB, THUMB)
    reasons: dict[tuple[str, int], str] = {}
    _judge_repeats(columns, mark, not_measured)
    readable = np.ones(count, bool)
    readable[[row["index"] for row in unreadable]] = False
    first = _add_copies(columns, listed.names, pixels, hashes, thumbs, readable, reasons)
    _add_captions(columns, listed, reasons, not_measured)
    columns["remains"] = remaining_noise(columns["width"], columns["height"], size)
    if mark is None and "mark" not in not_measured:
        columns["mark"][readable] = 0  # looked for, and not there
    return DataAudit(
        spec=spec,
        names=listed.names,
        captions=listed.captions,
        columns=columns,
        power=power,
        first_copy=first,
        reasons=reasons,
        not_measured=not_measured,
        unreadable=unreadable,
        refused=[*listed.quarantine, *_orphans(listed)],
        ignored=listed.ignored,
        size=size,
        read=lambda index: listed.read(listed.keys[index]),
    )


def _judge_repeats(
    columns: dict[str, Any], mark: Mark | None, not_measured: dict[str, str]
) -> None:
    """What depends on the other pictures: a mark must be missing on some, and gray is a finding
    only among coloured pictures."""
    if mark is not None and not shows_mark(columns["mark"][np.isfinite(columns["mark"])]):
        columns["mark"][:] = np.nan
        not_measured["mark"] = "many pictures resemble each other, and a mark does not stand out"
    gray = columns["gray"]
    if np.isfinite(gray).any() and np.nanmean(gray) > 1 - COLOURED:
        gray[:] = np.nan
        not_measured["gray"] = "many pictures are gray"


def _add_copies(
    columns: dict[str, Any],
    names: Sequence[str],
    pixels: Sequence[bytes],
    hashes: np.ndarray,
    thumbs: np.ndarray,
    readable: np.ndarray,
    reasons: dict[tuple[str, int], str],
) -> np.ndarray:
    """Columns of copies among the readable pictures, (N,), bool.  =>  (N,), the first of equal
    pictures."""
    places = np.flatnonzero(readable)
    found = groups([pixels[place] for place in places.tolist()], hashes[places], thumbs[places])
    everything = np.arange(len(pixels))
    equal, near = everything.copy(), everything.copy()
    equal[places], near[places] = (places[own] for own in found)
    copied = equal != everything
    columns["duplicate"] = copied.astype(np.float32)
    columns["near_duplicate"] = ((near != everything) & ~copied).astype(np.float32)
    for key, first in (("duplicate", equal), ("near_duplicate", near)):
        for index in np.flatnonzero(columns[key]).tolist():
            reasons[key, index] = f"as {names[first[index]]}"
    return equal


def _add_captions(
    columns: dict[str, Any],
    listed: PairList,
    reasons: dict[tuple[str, int], str],
    not_measured: dict[str, str],
) -> None:
    captions = listed.captions
    if not any(captions) and not listed.refused:
        not_measured["captions"] = "there are none"
        return
    problems = texts.find_problems(captions)
    unusable = {name: reason for _, name, reason in listed.refused}
    for name, found in zip(listed.names, problems, strict=True):
        if name in unusable:
            found.pop("missing", None)
            found["empty"] = unusable[name]
    for name in ("missing", "empty", "identical", "script"):
        columns[f"caption_{name}"] = np.array([name in found for found in problems], np.float32)
    for index, found in enumerate(problems):
        for name, reason in found.items():
            reasons[f"caption_{name}", index] = reason
    columns["caption_cut"] = np.zeros(len(captions), np.float32)
    for index, length in _cut_captions(captions).items():
        columns["caption_cut"][index] = 1
        reasons["caption_cut", index] = f"{length} tokens, {TOKENS} are read"


def _cut_captions(captions: Sequence[str]) -> dict[int, int]:
    """Index => number of tokens, of the captions whose end CLIP does not read."""
    # A token has at least one byte; only long captions need the tokenizer, whose import takes long.
    long = [index for index, caption in enumerate(captions) if len(caption.encode()) > TOKENS]
    if not long:
        return {}
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    lengths = {index: len(tokenizer.encode(captions[index])) for index in long}
    return {index: length for index, length in lengths.items() if length > TOKENS}


def _orphans(listed: PairList) -> list[dict[str, Any]]:
    return [
        {"name": name, "reason": "a caption without a picture"} for name in listed.without_image
    ]
