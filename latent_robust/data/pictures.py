"""A set of pictures of one size, all of them known to be good."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from .buckets import fit_bucket
from .decode import BadPicture
from .scan import changed, try_all

# Sets up to this many bytes are kept in memory.
SMALL = 2**30


class Source(Protocol):
    """Where pictures come from. Must survive pickling, for the workers of a DataLoader."""

    names: Sequence[str]
    labels: Tensor | None  # (N,), int64
    dtype: torch.dtype  # uint8, or float32 in [0, 1]
    ignored: int  # files that do not claim to be pictures

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        """=>  picture (C, h, w), checksum of what is stored. Raises BadPicture."""
        ...


class PictureSet:
    """What `open_pictures` gives. Read-only.

    quarantine: rows {"name", "reason"}; labels: (N,) or None; ignored: files that do not claim to
    be pictures (by their extension).
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
        self._pictures = self._scan()
        self._digest = self._digest.hexdigest()  # a hash object cannot be pickled
        self.labels = None if source.labels is None else source.labels[torch.tensor(self._kept)]

    def __len__(self) -> int:
        return len(self._kept)

    def picture(self, index: int) -> Tensor:
        """=>  (C, size, size), float32 in [0, 1]."""
        if self._pictures is not None:
            picture = self._pictures[: len(self)][index].clone()
        else:
            picture = self._load_again(index)
        return v2.to_dtype(picture, torch.float32, scale=True)

    def name(self, index: int) -> str:
        return self._source.names[self._kept[index]]

    def fingerprint(self) -> str:
        """SHA-256 over size, channels, names and checksums of the stored pictures.

        Not over the place: a folder that has moved is the same data.
        """
        return self._digest

    def _scan(self) -> Tensor | None:
        """Decode everything once.  =>  (N, C, size, size) if small, else None."""
        total = len(self._source.names)
        shape, dtype = (total, self.channels, self.size, self.size), self._source.dtype
        small = prod(shape) * dtype.itemsize <= SMALL
        pictures = torch.empty(shape, dtype=dtype) if small else None

        for index, (picture, note) in enumerate(try_all(self._try, total)):
            name = self._source.names[index]
            self._digest.update(f"{name}\0{note}\0".encode(errors="surrogateescape"))
            if picture is None:
                self.quarantine.append({"name": name, "reason": note})
                continue
            if pictures is not None:
                pictures[len(self._kept)] = picture
            self._kept.append(index)
        return pictures

    def _try(self, index: int) -> tuple[Tensor | None, str]:
        """A picture and its checksum, or None and the reason."""
        try:
            picture, checksum = self._source.load(index, self.channels)
        except BadPicture as bad:
            return None, bad.reason
        return fit_bucket(picture, (self.size, self.size)), f"{checksum:08x}"

    def _load_again(self, index: int) -> Tensor:
        picture, note = self._try(self._kept[index])
        if picture is None:
            raise changed(self.name(index), note)
        return picture
