"""Pairs in a folder: captions in metadata files, or in a file beside each image.

A metadata file speaks for its own folder and those below it. An image that no row names takes its
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

from latent_robust.data.decode import BadImage
from latent_robust.errors import InputError

from .folder import image_names, list_files, read_file
from .metadata import METADATA, Row, read_metadata
from .pair_list import PairList, to_repeats

SIDECARS = (".txt", ".caption")


def list_folder(
    folder: Path, caption_column: str | None, folder_repeats: bool, limit: int | None
) -> PairList:
    """Sorted by image. folder_repeats: the images of a folder `10_name` count ten times."""
    files = sorted(list_files(folder))
    metadata = _metadata(files)
    if caption_column is not None and not metadata:
        raise InputError(
            f"caption column {caption_column!r}: there is no {', '.join(sorted(METADATA))} in "
            f"{folder}; without one, captions come from text files beside the images"
        )
    pairs = PairList(partial(read_file, folder))
    rows = _rows_by_image(folder, metadata, set(files), caption_column, pairs)
    images = sorted({*image_names(files, folder), *rows})
    sidecars, alone = _sidecars(files, images, rows)

    pairs.without_image += alone
    pairs.ignored = len(set(files).difference(images, metadata, sidecars.values(), alone))
    for image, row in islice(((p, row) for p in images for row in rows.get(p, [None])), limit):
        repeats = _repeats_of_folder(folder, image) if folder_repeats else 1
        if row is not None:
            pairs.add(image, image, row.caption, repeats * row.repeats)
        elif image in sidecars:
            _add_with_sidecar(pairs, folder, image, sidecars[image], repeats)
        else:
            pairs.add(image, image, None, repeats)
    return pairs


def _metadata(files: Sequence[str]) -> list[str]:
    """files: sorted."""
    found = [name for name in files if basename(name) in METADATA]
    for one, other in pairwise(found):
        if PurePosixPath(one).parent == PurePosixPath(other).parent:
            # Usually one table in two formats, which would give every pair twice.
            raise InputError(f"{one} and {other} are in one folder; keep one of them")
    return found


def _rows_by_image(
    folder: Path,
    metadata: Sequence[str],
    files: set[str],
    caption_column: str | None,
    pairs: PairList,
) -> dict[str, list[Row]]:
    """Also of images that are not there, which later cannot be read. Rows that name none go to
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
            image = str(PurePosixPath(name).parent / path)
            if image not in files:
                image = composed.get(normalize("NFC", image), image)
            rows.setdefault(image, []).append(row)
    return rows


def _sidecars(
    files: Sequence[str], images: Sequence[str], rows: dict[str, list[Row]]
) -> tuple[dict[str, str], list[str]]:
    """=>  image -> caption file, for those that no row names; caption files without an image."""
    captions: dict[str, str] = {}
    parts = [(name, *splitext(name)) for name in files]
    for suffix in SIDECARS:
        for name, stem, ending in parts:
            if ending.lower() == suffix:
                captions.setdefault(stem, name)
    partners = {image: splitext(image)[0] for image in images}
    alone = sorted(captions[stem] for stem in captions.keys() - partners.values())
    sidecars = {
        image: captions[stem]
        for image, stem in partners.items()
        if image not in rows and stem in captions
    }
    return sidecars, alone


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
    """Of the innermost folder called `N_name`, as kohya's scripts name them."""
    for part in reversed(PurePosixPath(image).parts[:-1]):
        if counted := re.match(r"(\d+)_", part):
            return to_repeats(counted[1], f"{folder}, folder {part}")
    return 1
