"""Images with captions: from a `--data` specification to a set of pairs known to be good."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

from .decode import BadImage, decode_image
from .scan import (
    KnownSizes,
    changed,
    check_limits,
    refuse_too_many_bad,
    try_all,
)
from .sources.pair_list import PairList
from .sources.spec import PAIR_FORMS, parse_spec


class PairSet:
    """What `open_pairs` gives. Read-only; holds names and captions, and no image.

    captions: "" where there is none; repeats: how often a pair counts in an epoch, >= 1; sizes:
    (height, width), upright; quarantine: rows {"name", "reason"}, none of them a pair of this set;
    without_caption: images of this set whose caption is ""; without_image: caption files
    beside no image; ignored: files that claim to be neither image nor caption.
    """

    def __init__(self, pairs: PairList, spec: str, known: KnownSizes):
        self.spec = spec
        self.captions: list[str] = []
        self.repeats: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.quarantine = list(pairs.quarantine)
        self.without_image = pairs.without_image
        self.ignored = pairs.ignored
        self._read = pairs.read
        self._names: list[str] = []
        self._keys: list = []
        self._checksums: list[bytes] = []
        self._scan(pairs, known)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    @property
    def without_caption(self) -> list[str]:
        named = zip(self._names, self.captions, strict=True)
        return [name for name, caption in named if not caption]

    def image(self, index: int) -> Tensor:
        """=>  uint8 (3, H, W), upright, transparency composited on white, at full resolution."""
        name = self._names[index]
        try:
            data = self._read(self._keys[index])
            if hashlib.sha256(data).digest() != self._checksums[index]:
                raise changed(name, "its bytes have changed")
            return decode_image(data, name, channels=3)
        except BadImage as bad:
            raise changed(name, bad.reason) from bad

    def pick(self, indices: Sequence[int]) -> PairSet:
        """The pairs of these indices alone, in this order, as a set of their own."""
        picked = copy.copy(self)
        picked.__dict__.pop("_fingerprint", None)
        for what in ("captions", "repeats", "sizes", "_names", "_keys", "_checksums"):
            values = getattr(self, what)
            setattr(picked, what, [values[i] for i in indices])
        return picked

    def checksum(self, index: int) -> str:
        """SHA-256 of the stored bytes of the image."""
        return self._checksums[index].hex()

    def fingerprint(self) -> str:
        """SHA-256 over names, checksums, captions and repeats.

        Not over the place: a folder that has moved is the same data.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        """Several are asked for before the first step."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            row = (
                self.name(index),
                self.checksum(index),
                self.captions[index],
                self.repeats[index],
            )
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def summary(self) -> str:
        """e.g. "2,914 pairs, 31 quarantined, 12 images without a caption"."""
        parts = [
            _count(len(self), "pair"),
            f"{len(self.quarantine):,} quarantined",
            f"{_count(len(self.without_caption), 'image')} without a caption",
        ]
        if self.without_image:
            parts.append(f"{_count(len(self.without_image), 'caption')} without an image")
        return ", ".join(parts)

    def _scan(self, pairs: PairList, known: KnownSizes) -> None:
        """Decode everything once, but for what is known; keep sizes and checksums."""

        def attempt(index: int) -> tuple[tuple[int, int], bytes] | str:
            try:
                data = pairs.read(pairs.keys[index])
                checksum = hashlib.sha256(data).digest()
                size = known.get(checksum)
                if size is None:
                    image = decode_image(data, pairs.names[index], channels=3)
                    size = tuple(image.shape[-2:])
            except BadImage as bad:
                return bad.reason
            return size, checksum

        for index, outcome in enumerate(try_all(attempt, len(pairs.keys))):
            name = pairs.names[index]
            if isinstance(outcome, str):
                self.quarantine.append({"name": name, "reason": outcome})
                continue
            size, checksum = outcome
            known.add(checksum, size)
            self.sizes.append(size)
            self._checksums.append(checksum)
            self._names.append(name)
            self._keys.append(pairs.keys[index])
            self.captions.append(pairs.captions[index])
            self.repeats.append(pairs.repeats[index])


def open_pairs(
    spec: str,
    *,
    caption_column: str | None = None,
    limit: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    offline: bool = False,
    folder_repeats: bool = False,
    known: Path | None = None,
) -> PairSet:
    """Every image is decoded once here; bad ones are left out and named in `.quarantine`.

    spec: a folder, or one of PAIR_FORMS; caption_column: of the metadata, table or JSON members, None
    for the usual names; limit: the first so many of the source, bad ones included;
    max_bad_fraction: in [0, 1]; folder_repeats: images in a folder `10_name` count ten times;
    known: a file that remembers which images could be decoded, so that the next call need not.

    Raises InputError: the specification, an unreadable source, a column that is not there, no
    image, too many bad ones.
    """
    check_limits(limit, max_bad_fraction)
    sizes = KnownSizes(known)
    pairs = PairSet(_list(spec, caption_column, folder_repeats, limit, offline), spec, sizes)
    refuse_too_many_bad("pairs", spec, len(pairs), pairs.quarantine, max_bad_fraction)
    sizes.keep()  # only now: what is refused leaves nothing behind
    return pairs


def open_reference(spec: str, caption_column: str | None, **options) -> PairSet:
    """Clean pairs to compare with, of which nothing need be like the others: with the others'
    caption column where they have it. options: of `open_pairs`."""
    try:
        return open_pairs(spec, caption_column=caption_column, **options)
    except InputError:
        if caption_column is None:
            raise
        return open_pairs(spec, **options)


def _list(
    spec: str, caption_column: str | None, folder_repeats: bool, limit: int | None, offline: bool
) -> PairList:
    """Imports the libraries of a source only when it is used."""
    if folder_repeats and spec.partition(":")[0] in PAIR_FORMS:
        raise InputError(f"repeats in folder names need a folder, got {spec!r}")
    parsed = parse_spec(spec, PAIR_FORMS)
    match parsed.kind:
        case "scenes":
            from .sources.scene_sources import list_scenes

            return list_scenes(limit, caption_column)
        case "parquet":
            from .sources.pair_table import list_table
            from .sources.table import read_parquet

            return list_table(read_parquet(*parsed.paths, limit), spec, caption_column)
        case "hf":
            from .sources.pair_table import list_table
            from .sources.table import read_hub

            table = read_hub(parsed.name, parsed.split, offline, limit)
            return list_table(table, spec, caption_column)
        case "wds":
            from .sources.pair_shards import list_shards

            return list_shards(parsed.paths, spec, caption_column, limit)
    from .sources.pair_folder import list_folder

    return list_folder(*parsed.paths, caption_column, folder_repeats, limit)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
