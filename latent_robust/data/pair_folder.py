"""Pairs in a folder: captions in metadata files, or in a file beside each picture.

A metadata file speaks for its own folder and those below it. A picture that no row names takes its
caption from `x.txt`, else from `x.caption`, beside `x.png`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from posixpath import basename, splitext
from unicodedata import normalize

from latent_robust.errors import InputError

from .decode import BadPicture
from .folder import list_files, picture_names, read_file
from .metadata import METADATA, Row, read_metadata
from .pair_list import PairList, to_repeats

SIDECARS = (".txt", ".caption")


def list_folder(
    folder: Path, caption_column: str | None, folder_repeats: bool, limit: int | None
) -> PairList:
    """Sorted by picture. folder_repeats: the pictures of a folder `10_name` count ten times."""
    files = sorted(list_files(folder))
    metadata = _metadata(files)
    if caption_column is not None and not metadata:
        raise InputError(
            f"caption column {caption_column!r}: there is no {', '.join(sorted(METADATA))} in "
            f"{folder}; without one, captions come from text files beside the pictures"
        )
    pairs = PairList(partial(read_file, folder))
    rows = _rows_by_picture(folder, metadata, set(files), caption_column, pairs)
    pictures = sorted({*picture_names(files, folder), *rows})
    sidecars, alone = _sidecars(files, pictures, rows)

    pairs.without_picture += alone
    pairs.ignored = len(set(files).difference(pictures, metadata, sidecars.values(), alone))
    for picture, row in islice(((p, row) for p in pictures for row in rows.get(p, [None])), limit):
        repeats = _repeats_of_folder(folder, picture) if folder_repeats else 1
        if row is not None:
            pairs.add(picture, picture, row.caption, repeats * row.repeats)
        elif picture in sidecars:
            _add_with_sidecar(pairs, folder, picture, sidecars[picture], repeats)
        else:
            pairs.add(picture, picture, None, repeats)
    return pairs


def _metadata(files: Sequence[str]) -> list[str]:
    """files: sorted."""
    found = [name for name in files if basename(name) in METADATA]
    for one, other in pairwise(found):
        if PurePosixPath(one).parent == PurePosixPath(other).parent:
            # Usually one table in two formats, which would give every pair twice.
            raise InputError(f"{one} and {other} are in one folder; keep one of them")
    return found


def _rows_by_picture(
    folder: Path,
    metadata: Sequence[str],
    files: set[str],
    caption_column: str | None,
    pairs: PairList,
) -> dict[str, list[Row]]:
    """Also of pictures that are not there, which later cannot be read. Rows that name none go to
    the quarantine of `pairs`."""
    rows: dict[str, list[Row]] = {}
    # macOS takes letters apart that others write as one.
    composed = {normalize("NFC", name): name for name in files}
    for name in metadata:
        for row in read_metadata(folder / name, caption_column):
            place = f"{name}, {row.where}"
            if not isinstance(row.file_name, str) or not row.file_name.strip():
                pairs.refuse(place, f"file_name is {row.file_name!r}, not a path")
                continue
            path = PurePosixPath(row.file_name)
            if path.is_absolute() or ".." in path.parts:
                pairs.refuse(place, f"file_name {row.file_name!r} leads out of the folder")
                continue
            picture = str(PurePosixPath(name).parent / path)
            if picture not in files:
                picture = composed.get(normalize("NFC", picture), picture)
            rows.setdefault(picture, []).append(row)
    return rows


def _sidecars(
    files: Sequence[str], pictures: Sequence[str], rows: dict[str, list[Row]]
) -> tuple[dict[str, str], list[str]]:
    """=>  picture -> caption file, for those that no row names; caption files without a picture."""
    captions: dict[str, str] = {}
    parts = [(name, *splitext(name)) for name in files]
    for suffix in SIDECARS:
        for name, stem, ending in parts:
            if ending.lower() == suffix:
                captions.setdefault(stem, name)
    partners = {picture: splitext(picture)[0] for picture in pictures}
    alone = sorted(captions[stem] for stem in captions.keys() - partners.values())
    sidecars = {
        picture: captions[stem]
        for picture, stem in partners.items()
        if picture not in rows and stem in captions
    }
    return sidecars, alone


def _add_with_sidecar(
    pairs: PairList, folder: Path, picture: str, sidecar: str, repeats: int
) -> None:
    try:
        caption = read_file(folder, sidecar)
    except BadPicture as bad:
        pairs.refuse(picture, f"its caption {sidecar} {bad.reason}")
    else:
        pairs.add(picture, picture, caption, repeats)


def _repeats_of_folder(folder: Path, picture: str) -> int:
    """Of the innermost folder called `N_name`, as kohya's scripts name them."""
    for part in reversed(PurePosixPath(picture).parts[:-1]):
        if counted := re.match(r"(\d+)_", part):
            return to_repeats(counted[1], f"{folder}, folder {part}")
    return 1
