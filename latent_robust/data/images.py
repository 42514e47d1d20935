"""Image datasets: images of one size, all of which were decoded without error.

Opening a dataset decodes every image once, so that bad files are known before training starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

from .buckets import fit_bucket
from .decode import BadImage
from .scan import changed_since_scan, check_limits, refuse_too_many_bad, try_all
from .sources.spec import IMAGE_FORMS, parse_spec

# Datasets of at most this many bytes are kept in memory.
SMALL = 2**30


class Source(Protocol):
    """Stored images of any origin. Must be picklable, because DataLoader workers get a copy."""

    names: Sequence[str]
    labels: Tensor | None  # (N,), int64
    dtype: torch.dtype  # uint8, or float32 in [0, 1]
    ignored: int  # number of files without an image extension

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Returns the image (C, h, w) and a checksum of the stored data. Raises BadImage."""
        ...


class ImageSet:
    """A read-only dataset of images of one size; `open_images` returns it.

    quarantine: rows {"name", "reason"} of the images that cannot be used; labels: (N,), int64, or
    None; ignored: number of files without an image extension.
    """

    def __init__(self, source: Source, spec: str, *, size: int, channels: int, offline: bool):
        self.spec = spec
        self.size = size
        self.channels = channels
        self.offline = offline
        self.ignored = source.ignored
        self.quarantine: list[dict] = []
        self._source = source
        self._kept: list[int] = []
        self._digest = hashlib.sha256(f"{size} {channels}".encode())
        self._images = self._scan()
        self._digest = self._digest.hexdigest()  # a hash object cannot be pickled
        self.labels = None if source.labels is None else source.labels[torch.tensor(self._kept)]

    def __len__(self) -> int:
        return len(self._kept)

    def image(self, index: int) -> Tensor:
        """Returns float32 (C, size, size) in [0, 1]."""
        if self._images is not None:
            image = self._images[: len(self)][index].clone()
        else:
            image = self._reload(index)
        return v2.to_dtype(image, torch.float32, scale=True)

    def original(self, index: int) -> Tensor:
        """The image at its own resolution: float32 (C, H, W) in [0, 1]."""
        try:
            image, _ = self._source.load(self._kept[index], self.channels)
        except BadImage as bad:
            raise changed_since_scan(self.name(index), bad.reason) from bad
        return v2.to_dtype(image, torch.float32, scale=True)

    def fit(self, image: Tensor) -> Tensor:
        """Crop and resize an image (C, H, W) as `image` does."""
        return fit_bucket(image, (self.size, self.size))

    def joined(self, other: ImageSet) -> JoinedImages:
        """These images, then those of `other`, which have the same size and channels."""
        return JoinedImages(self, other)

    def name(self, index: int) -> str:
        return self._source.names[self._kept[index]]

    def fingerprint(self) -> str:
        """SHA-256 of the size, the channels, and the name and checksum of every stored image.

        A quarantined image counts with its reason. The folder's path does not count: a folder that
        was moved is the same data.
        """
        return self._digest

    def _scan(self) -> Tensor | None:
        """Decode every image once. Returns (N, C, size, size) if the dataset is small, else None.

        N counts the bad images too; the good ones come first.
        """
        total = len(self._source.names)
        shape, dtype = (total, self.channels, self.size, self.size), self._source.dtype
        small = prod(shape) * dtype.itemsize <= SMALL
        images = torch.empty(shape, dtype=dtype) if small else None

        for index, (image, note) in enumerate(try_all(self._load, total)):
            name = self._source.names[index]
            self._digest.update(f"{name}\0{note}\0".encode(errors="surrogateescape"))
            if image is None:
                self.quarantine.append({"name": name, "reason": note})
                continue
            if images is not None:
                images[len(self._kept)] = image
            self._kept.append(index)
        return images

    def _load(self, index: int) -> tuple[Tensor | None, str]:
        """An image (C, size, size) and its checksum, or None and the reason why not."""
        try:
            image, checksum = self._source.load(index, self.channels)
        except BadImage as bad:
            return None, bad.reason
        return self.fit(image), f"{checksum:08x}"

    def _reload(self, index: int) -> Tensor:
        image, note = self._load(self._kept[index])
        if image is None:
            raise changed_since_scan(self.name(index), note)
        return image


class JoinedImages:
    """Two image sets as one: the images of the second follow those of the first."""

    def __init__(self, first: ImageSet, second: ImageSet):
        self.parts = (first, second)
        self.spec, self.size, self.channels = first.spec, first.size, first.channels
        self.offline = first.offline
        self.ignored = first.ignored + second.ignored
        self.quarantine = [*first.quarantine, *second.quarantine]
        self.labels = None  # the classes of two sources need not agree

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def image(self, index: int) -> Tensor:
        part, index = self._place(index)
        return part.image(index)

    def original(self, index: int) -> Tensor:
        part, index = self._place(index)
        return part.original(index)

    def fit(self, image: Tensor) -> Tensor:
        return self.parts[0].fit(image)

    def name(self, index: int) -> str:
        part, index = self._place(index)
        return part.name(index)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(p.fingerprint() for p in self.parts).encode()).hexdigest()

    def _place(self, index: int) -> tuple[ImageSet, int]:
        first, second = self.parts
        return (first, index) if index < len(first) else (second, index - len(first))


def open_images(
    spec: str,
    *,
    size: int,
    channels: int,
    limit: int | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    offline: bool = False,
) -> ImageSet:
    """Open a dataset and decode every image once. Bad images are left out, see `.quarantine`.

    spec: a folder, or one of IMAGE_FORMS; size: side in pixels, >= 1; channels: 1 or 3; limit: use
    only the first `limit` images of the source, bad ones included; max_bad_fraction: allowed share
    of bad images, in [0, 1]; offline: take Hub datasets from the local cache only.

    Raises InputError for a wrong `spec`, a source that cannot be read, no usable image, or a share
    of bad images above `max_bad_fraction`.
    """
    if size < 1 or channels not in (1, 3):
        raise InputError(f"`size` must be >= 1 and `channels` 1 or 3, got {size} and {channels}")
    check_limits(limit, max_bad_fraction)
    images = ImageSet(
        open_source(spec, limit, offline), spec, size=size, channels=channels, offline=offline
    )
    refuse_too_many_bad("images", spec, len(images), images.quarantine, max_bad_fraction)
    return images


def open_source(spec: str, limit: int | None, offline: bool) -> Source:
    """Import the libraries of a source only when it is used."""
    parsed = parse_spec(spec, IMAGE_FORMS)
    match parsed.kind:
        case "digits":
            from .sources.builtin import digits

            return digits(limit)
        case "scenes":
            from .sources.scene_sources import SceneImages

            return SceneImages(limit)
        case "fashion-mnist":
            from .sources.builtin import fashion_mnist

            return fashion_mnist(*parsed.paths, limit)
        case "parquet":
            from .sources.table import read_parquet

            return read_parquet(*parsed.paths, limit)
        case "hf":
            from .sources.table import read_hub

            return read_hub(parsed.name, parsed.split, offline, limit)
    from .sources.folder import FolderSource

    return FolderSource(*parsed.paths, limit)
