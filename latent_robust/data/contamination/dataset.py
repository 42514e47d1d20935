"""The common base of contaminated images and contaminated pairs.

What happens to image `index` depends only on a generator seeded with (seed, position of the
corruption in the list, index). So it is the same in every epoch, process, worker and order. The
manifest file is for evaluation; training never reads it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from latent_robust.core import derive_generator
from latent_robust.files import write_jsonl

from .corruption import Corruption, CorruptionContext, Size
from .kinds import CORRUPTIONS
from .kinds.image import Outliers


class ContaminatedDataset(ABC):
    """A dataset with corruptions, applied in their order. seed: of every random choice.

    trusted: indices of samples that the user vouches for; no corruption hits them.
    """

    def __init__(
        self,
        corruptions: Sequence[Corruption],
        seed: int,
        context: CorruptionContext,
        trusted: Sequence[int] = (),
    ):
        self.seed = seed
        self.trusted = list(trusted)
        self._spared = frozenset(self.trusted)
        self.corruptions = [
            corruption.prepare(context, partial(self._generator, position))
            for position, corruption in enumerate(corruptions)
        ]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    @abstractmethod
    def records(self, index: int) -> list[dict]:
        """One row {"kind", parameters} per corruption that hits `index`. Decodes no image."""

    def manifest(self) -> Iterator[dict]:
        """Rows {"index", "name", "seed", "corruptions": [{"kind", parameters}]}."""
        for index in range(len(self)):
            yield {
                "index": index,
                "name": self.name(index),
                "seed": self.seed,
                "corruptions": self.records(index),
            }

    def write_manifest(self, path: str | Path) -> None:
        """Write the rows as JSON lines, completely or not at all.

        Raises InputError if the file cannot be written.
        """
        write_jsonl(self.manifest(), path)

    def levels(self) -> Tensor:
        """True standard deviation of each sample's Gaussian noise: (N,), in units of [-1, 1].

        0 without noise. Other corruptions do not count, although blur, JPEG or clipping after the
        noise changes it.
        """
        return torch.tensor([_level(self.records(index)) for index in range(len(self))])

    def dirty(self) -> Tensor:
        """Which samples at least one corruption hits: (N,), bool.

        For evaluation, and for the oracle `drop_noisy`, which leaves them out of training.
        """
        return torch.tensor([bool(self.records(index)) for index in range(len(self))])

    def _quarantine(self) -> list[dict]:
        """Unusable images in the sources of the outliers."""
        outliers = [c.images for c in self.corruptions if isinstance(c, Outliers)]
        return [row for images in outliers for row in images.quarantine]

    def _fingerprint(self, *parts: Any) -> str:
        """SHA-256 of `parts`, the seed, the corruptions and the sources of the outliers."""
        content = [*parts, self.seed]
        if self.trusted:
            content.append(self.trusted)
        for corruption in self.corruptions:
            content.append([corruption.kind, _parameters(corruption)])
            if isinstance(corruption, Outliers):
                content.append(corruption.images.fingerprint())
        return digest(content)

    def _generator(self, position: int, index: int | str) -> Generator:
        return derive_generator(self.seed, "corruption", position, index)

    def _hits(self, index: int, size: Size) -> Iterator[tuple[Corruption, dict, Generator]]:
        """Yield each corruption that hits `index`, its record, and the generator for `change`."""
        for position, corruption in enumerate(self.corruptions):
            generator = self._generator(position, index)
            if self._is_hit(corruption, index, generator):
                yield corruption, corruption.draw(index, size, generator), generator

    def _is_hit(self, corruption: Corruption, index: int, generator: Generator) -> bool:
        return index not in self._spared and corruption.hits(index, generator)

    def _contaminate(self, image: Tensor, index: int) -> tuple[Tensor, list[dict]]:
        """The corrupted image and its records. image: (C, h, w) in [0, 1]."""
        records = []
        for corruption, record, generator in self._hits(index, tuple(image.shape[-2:])):
            image = corruption.change(image, record, generator)
            records.append({"kind": corruption.kind, **record})
        return image, records


def digest(parts: Any) -> str:
    """SHA-256 (hex) of JSON data."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def to_sample(image: Tensor) -> Tensor:
    """[0, 1]  =>  [-1, 1]."""
    return 2 * image - 1


def _level(records: list[dict]) -> float:
    variance = 0.0
    for record in records:
        if record["kind"] == "gaussian":
            variance += (2 * record["sigma"]) ** 2
        elif CORRUPTIONS[record["kind"]].replaces:  # the noise is gone with the image
            variance = 0.0
    return variance**0.5


def _parameters(corruption: Corruption) -> dict:
    return {f.name: getattr(corruption, f.name) for f in fields(corruption) if f.init}
