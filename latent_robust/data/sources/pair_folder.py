"""Pairs in a folder: captions come from metadata files, or from a text file next to each image.

A metadata file applies to its own folder and the folders below it. An image `x.png` that no row
names takes its caption from `x.txt`, else from `x.caption`, in the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from posixpath import basename, splitext
from unicodedata import normalize

from latent_robust.data.decode import BadImage
from latent_robust.errors import InputError

from .folder import image_names, list_files, read_file
from .metadata import METADATA, Row, read_metadata
from .pair_list import PairList, to_repeats

SIDECARS = (".txt", ".caption")


def list_folder(
    folder: Path, caption_column: str | None, folder_repeats: bool, limit: int | None
) -> PairList:
    """List the pairs of a folder, sorted by image path.

    folder_repeats: images in a folder `10_name` are used ten times per epoch; limit: the first
    `limit` pairs only. Raises InputError for a folder without images, metadata that cannot be
    read, and a `caption_column` without metadata.
    """
    files = sorted(list_files(folder))
    metadata = _metadata_files(files)
    if caption_column is not None and not metadata:
        raise InputError(
            f"caption column {caption_column!r} needs one of {', '.join(sorted(METADATA))} in "
            f"{folder}, and there is none; leave it out to use the text files next to the images"
        )
    pairs = PairList(partial(read_file, folder))
    rows = _rows_by_image(folder, metadata, set(files), caption_column, pairs)
    images = sorted({*image_names(files, folder), *rows})
    sidecars, orphans = _sidecars(files, images, rows)

    pairs.without_image += orphans
    pairs.ignored = len(set(files).difference(images, metadata, sidecars.values(), orphans))
    for image, row in islice(((p, row) for p in images for row in rows.get(p, [None])), limit):
        repeats = _repeats_of_folder(folder, image) if folder_repeats else 1
        if row is not None:
            pairs.add(image, image, row.caption, repeats * row.repeats)
        elif image in sidecars:
            _add_with_sidecar(pairs, folder, image, sidecars[image], repeats)
        else:
            pairs.add(image, image, None, repeats)
    return pairs


def _metadata_files(files: Sequence[str]) -> list[str]:
    """files: sorted. Raises InputError for two metadata files in one folder."""
    metadata = [name for name in files if basename(name) in METADATA]
    for one, other in pairwise(metadata):
        if PurePosixPath(one).parent == PurePosixPath(other).parent:
            # Usually the same table in two formats, which would list every pair twice.
            raise InputError(f"{one} and {other} are in one folder; keep one of them")
    return metadata


def _rows_by_image(
    folder: Path,
    metadata: Sequence[str],
    files: set[str],
    caption_column: str | None,
    pairs: PairList,
) -> dict[str, list[Row]]:
    """Image path -> its metadata rows.

    A row may name a missing image, which is quarantined later, when it cannot be read. A row
    without a usable path goes to the quarantine of `pairs` here.
    """
    rows: dict[str, list[Row]] = {}
    # macOS writes an accented letter as two characters (NFD), other systems as one (NFC).
    composed = {normalize("NFC", name): name for name in files}
    for name in metadata:
        for row in read_metadata(folder / name, caption_column):
            where = f"{name}, {row.where}"
            if not isinstance(row.file_name, str) or not row.file_name.strip():
                pairs.refuse(where, f"file_name is {row.file_name!r}, not a path")
                continue
            path = PurePosixPath(row.file_name)
            if path.is_absolute() or ".." in path.parts:
                pairs.refuse(where, f"file_name {row.file_name!r} points outside the folder")
                continue
            image = str(PurePosixPath(name).parent / path)
            if image not in files:
                image = composed.get(normalize("NFC", image), image)
            rows.setdefault(image, []).append(row)
    return rows


def _sidecars(
    files: Sequence[str], images: Sequence[str], rows: dict[str, list[Row]]
) -> tuple[dict[str, str], list[str]]:
    """Returns image -> caption file, for images that no row names; caption files without image."""
    captions: dict[str, str] = {}
    parts = [(name, *splitext(name)) for name in files]
    for suffix in SIDECARS:
        for name, stem, ending in parts:
            if ending.lower() == suffix:
                captions.setdefault(stem, name)
    partners = {image: splitext(image)[0] for image in images}
    orphans = sorted(captions[stem] for stem in captions.keys() - partners.values())
    sidecars = {
        image: captions[stem]
        for image, stem in partners.items()
        if image not in rows and stem in captions
    }
    return sidecars, orphans


def _add_with_sidecar(
    pairs: PairList, folder: Path, image: str, sidecar: str, repeats: int
) -> None:
    try:
        caption = read_file(folder, sidecar)
    except BadImage as bad:
        pairs.refuse(image, f"its caption {sidecar} {bad.reason}")
    else:
        pairs.add(image, image, caption, repeats)


def _repeats_of_folder(folder: Path, image: str) -> int:
    """The N of the innermost folder called `N_name`, as in kohya's scripts; 1 without one."""
    for part in reversed(PurePosixPath(image).parts[:-1]):
        if counted := re.match(r"(\d+)_", part):
            return to_repeats(counted[1], f"{folder}, folder {part}")
    return 1
