"""Image-caption pairs: from a `--data` specification to a dataset whose images can be decoded.

Opening a dataset decodes every image once, so that bad files are known before training starts.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

from .decode import BadImage, decode_image
from .scan import (
    ScanCache,
    changed_since_scan,
    check_limits,
    refuse_too_many_bad,
    try_all,
)
from .sources.pair_list import PairList
from .sources.spec import PAIR_FORMS, parse_spec


class PairSet:
    """A read-only dataset of image-caption pairs; `open_pairs` returns it.

    It holds names and captions in memory, but no images. captions: "" for an image without one;
    repeats: how often a pair is used in an epoch, >= 1; sizes: (height, width) in pixels, upright;
    quarantine: rows {"name", "reason"} of what cannot be used, none of it in this dataset;
    without_caption: images of this dataset whose caption is ""; without_image: caption files that
    belong to no image; ignored: number of files that are neither an image nor its caption.
    """

    def __init__(self, pairs: PairList, spec: str, scan_cache: ScanCache):
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
        self._scan(pairs, scan_cache)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    @property
    def without_caption(self) -> list[str]:
        named = zip(self._names, self.captions, strict=True)
        return [name for name, caption in named if not caption]

    def image(self, index: int) -> Tensor:
        """Returns uint8 (3, H, W): upright, full resolution, transparency composited on white.

        Raises InputError if the file has changed since the dataset was opened.
        """
        name = self._names[index]
        try:
            data = self._read(self._keys[index])
            if hashlib.sha256(data).digest() != self._checksums[index]:
                raise changed_since_scan(name, "its bytes have changed")
            return decode_image(data, name, channels=3)
        except BadImage as bad:
            raise changed_since_scan(name, bad.reason) from bad

    def select(self, indices: Sequence[int]) -> PairSet:
        """A new dataset of only the pairs at `indices`, in this order."""
        selected = copy.copy(self)
        selected.__dict__.pop("_fingerprint", None)
        for field in ("captions", "repeats", "sizes", "_names", "_keys", "_checksums"):
            values = getattr(self, field)
            setattr(selected, field, [values[i] for i in indices])
        return selected

    def joined(self, other: PairSet) -> PairSet:
        """A new dataset: these pairs, then those of `other`."""
        both = copy.copy(self)
        both.__dict__.pop("_fingerprint", None)
        for field in ("captions", "repeats", "sizes", "quarantine", "without_image", "_names"):
            setattr(both, field, [*getattr(self, field), *getattr(other, field)])
        both.ignored = self.ignored + other.ignored
        both._checksums = [*self._checksums, *other._checksums]
        both._keys = [(pairs._read, key) for pairs in (self, other) for key in pairs._keys]
        both._read = _read_by_source
        return both

    def checksum(self, index: int) -> str:
        """SHA-256 (hex) of the stored bytes of the image."""
        return self._checksums[index].hex()

    def fingerprint(self) -> str:
        """SHA-256 of the names, checksums, captions and repeats of all pairs.

        The folder's path does not count: a folder that was moved is the same data.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        """Cached, because a run needs it several times before the first step."""
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
        """For example "2,914 pairs, 31 quarantined, 12 images without a caption"."""
        parts = [
            _count(len(self), "pair"),
            f"{len(self.quarantine):,} quarantined",
            f"{_count(len(self.without_caption), 'image')} without a caption",
        ]
        if self.without_image:
            parts.append(f"{_count(len(self.without_image), 'caption')} without an image")
        return ", ".join(parts)

    def _scan(self, pairs: PairList, scan_cache: ScanCache) -> None:
        """Decode every image that is not in the scan cache; keep sizes and checksums."""

        def attempt(index: int) -> tuple[tuple[int, int], bytes] | str:
            try:
                data = pairs.read(pairs.keys[index])
                checksum = hashlib.sha256(data).digest()
                size = scan_cache.get(checksum)
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
            scan_cache.add(checksum, size)
            self.sizes.append(size)
            self._checksums.append(checksum)
            self._names.append(name)
            self._keys.append(pairs.keys[index])
            self.captions.append(pairs.captions[index])
            self.repeats.append(pairs.repeats[index])


def _read_by_source(key: tuple[Callable[[Any], bytes], Any]) -> bytes:
    """The bytes of an image of joined datasets. key: how its own dataset reads it, and its key."""
    read, own = key
    return read(own)


def open_pairs(
    spec: str,
    *,
    caption_column: str | None = None,
    limit: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    offline: bool = False,
    folder_repeats: bool = False,
    scan_cache: Path | None = None,
) -> PairSet:
    """Open a dataset and decode every image once. Bad pairs are left out, see `.quarantine`.

    spec: a folder, or one of PAIR_FORMS; caption_column: in the metadata, table or JSON members
    (None: the usual names); limit: use only the first `limit` pairs of the source, bad ones
    included; max_bad_fraction: allowed share of bad pairs, in [0, 1]; offline: take Hub datasets
    from the local cache only; folder_repeats: images in a folder `10_name` are used ten times per
    epoch; scan_cache: a file that records which images were decoded, so that the next call need not
    decode them again.

    Raises InputError for a wrong `spec`, a source that cannot be read, a missing column, no usable
    image, or a share of bad pairs above `max_bad_fraction`.
    """
    check_limits(limit, max_bad_fraction)
    cache = ScanCache(scan_cache)
    pairs = PairSet(list_pairs(spec, caption_column, folder_repeats, limit, offline), spec, cache)
    refuse_too_many_bad("pairs", spec, len(pairs), pairs.quarantine, max_bad_fraction)
    cache.save()  # last, so that a refused dataset leaves no file behind
    return pairs


def open_reference(spec: str, caption_column: str | None, **options) -> PairSet:
    """Open clean pairs to compare with. options: as for `open_pairs`.

    caption_column: that of the training data. The reference may lack this column; it is then opened
    with the usual names.
    """
    try:
        return open_pairs(spec, caption_column=caption_column, **options)
    except InputError:
        if caption_column is None:
            raise
        return open_pairs(spec, **options)


def list_pairs(
    spec: str,
    caption_column: str | None = None,
    folder_repeats: bool = False,
    limit: int | None = None,
    offline: bool = False,
    *,
    captionless: bool = False,
) -> PairList:
    """What a specification names, before any image is decoded. captionless: tables may lack a
    caption column. Raises InputError as `open_pairs`."""
    if folder_repeats and spec.partition(":")[0] in PAIR_FORMS:
        raise InputError(f"repeats in folder names need a folder as dataset, got {spec!r}")
    parsed = parse_spec(spec, PAIR_FORMS)
    match parsed.kind:
        case "scenes":
            from .sources.scene_sources import list_scenes

            return list_scenes(limit, caption_column)
        case "parquet":
            from .sources.pair_table import list_table
            from .sources.table import read_parquet

            table = read_parquet(*parsed.paths, limit)
            return list_table(table, spec, caption_column, captionless=captionless)
        case "hf":
            from .sources.pair_table import list_table
            from .sources.table import read_hub

            table = read_hub(parsed.name, parsed.split, offline, limit)
            return list_table(table, spec, caption_column, captionless=captionless)
        case "wds":
            from .sources.pair_shards import list_shards

            return list_shards(parsed.paths, spec, caption_column, limit)
    from .sources.pair_folder import list_folder

    return list_folder(*parsed.paths, caption_column, folder_repeats, limit)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
