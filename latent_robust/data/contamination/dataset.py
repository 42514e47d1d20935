"""What contaminated images and contaminated pairs have in common.

What happens to image `index` is drawn from a generator seeded by (seed, position of the
corruption in the list, index) and by nothing else: it is the same in every epoch, process, worker
and order. The manifest is for evaluation; training never reads it.
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

from .corruption import Corruption, Size, Surroundings
from .kinds import CORRUPTIONS
from .kinds.image import Outliers


class Contaminated(ABC):
    """seed: of all that is drawn; corruptions: in the order in which they are applied."""

    def __init__(self, corruptions: Sequence[Corruption], seed: int, surroundings: Surroundings):
        self.seed = seed
        self.corruptions = [
            corruption.prepare(surroundings, partial(self._generator, position))
            for position, corruption in enumerate(corruptions)
        ]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    @abstractmethod
    def records(self, index: int) -> list[dict]:
        """{"kind", what was drawn} of each corruption that hits `index`. Decodes nothing."""

    def manifest(self) -> Iterator[dict]:
        """Rows {"index", "name", "seed", "corruptions": [{"kind", what was drawn}]}."""
        for index in range(len(self)):
            yield {
                "index": index,
                "name": self.name(index),
                "seed": self.seed,
                "corruptions": self.records(index),
            }

    def write_manifest(self, path: str | Path) -> None:
        """One row a line, whole or not at all. InputError if it cannot be written."""
        write_jsonl(self.manifest(), path)

    def levels(self) -> Tensor:
        """The true standard deviation of each sample's Gaussian noise, in sample units, (N,).

        0 if there is none. Other corruptions do not count, though what follows the noise (blur,
        JPEG, clipping) changes it.
        """
        return torch.tensor([_level(self.records(index)) for index in range(len(self))])

    def dirty(self) -> Tensor:
        """Which samples any corruption hits: (N,), bool. For evaluation, and for the oracle
        that leaves them out (`drop_noisy`)."""
        return torch.tensor([bool(self.records(index)) for index in range(len(self))])

    def _quarantine(self) -> list[dict]:
        """Broken images of the outliers' sources."""
        outliers = [c.images for c in self.corruptions if isinstance(c, Outliers)]
        return [row for images in outliers for row in images.quarantine]

    def _fingerprint(self, *parts: Any) -> str:
        """SHA-256 over `parts`, the seed, the corruptions and the outliers' sources."""
        whole = [*parts, self.seed]
        for corruption in self.corruptions:
            whole.append([corruption.kind, _parameters(corruption)])
            if isinstance(corruption, Outliers):
                whole.append(corruption.images.fingerprint())
        return digest(whole)

    def _generator(self, position: int, index: int | str) -> Generator:
        return derive_generator(self.seed, "corruption", position, index)

    def _hits(self, index: int, size: Size) -> Iterator[tuple[Corruption, dict, Generator]]:
        """In order: the corruptions that hit `index`, what they draw, the generator after that."""
        for position, corruption in enumerate(self.corruptions):
            generator = self._generator(position, index)
            if corruption.hits(index, generator):
                yield corruption, corruption.draw(index, size, generator), generator

    def _contaminate(self, image: Tensor, index: int) -> tuple[Tensor, list[dict]]:
        """image: (C, h, w) in [0, 1]."""
        records = []
        for corruption, record, generator in self._hits(index, tuple(image.shape[-2:])):
            image = corruption.change(image, record, generator)
            records.append({"kind": corruption.kind, **record})
        return image, records


def digest(parts: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def to_sample(image: Tensor) -> Tensor:
    """[0, 1]  =>  [-1, 1]."""
    return 2 * image - 1


def _level(records: list[dict]) -> float:
    variance = 0.0
    for record in records:
        if record["kind"] == "gaussian":
            variance += (2 * record["sigma"]) ** 2
        elif CORRUPTIONS[record["kind"]].replaces:  # the noise went with the image
            variance = 0.0
    return variance**0.5


def _parameters(corruption: Corruption) -> dict:
    return {f.name: getattr(corruption, f.name) for f in fields(corruption) if f.init}
