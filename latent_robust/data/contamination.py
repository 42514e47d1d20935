"""Pictures made dirty on purpose, with a record of what was done to each.

What happens to picture `index` is drawn from a generator seeded by (seed, position of the
corruption in the list, index) and by nothing else: it is the same in every epoch, process, worker
and order. The manifest is for evaluation; training never reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from latent_robust.core import derive_generator
from latent_robust.files import write_jsonl

from .contamination_spec import parse_contamination
from .corruptions import Corruption, Outliers
from .pictures import SMALL, PictureSet

__all__ = ["ContaminatedPictures", "parse_contamination"]


class ContaminatedPictures(Dataset):
    """Samples in [-1, 1], which Gaussian noise may leave.

    `__getitems__` gives a whole batch as one dict, so a DataLoader must not collate it again.
    """

    def __init__(self, pictures: PictureSet, corruptions: Sequence[Corruption], seed: int):
        self.pictures = pictures
        self.corruptions = [corruption.prepare(pictures) for corruption in corruptions]
        self.seed = seed
        self._samples: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict:
        """=>  sample (C, H, W), float32; index: int."""
        sample = self._samples[index] if self._samples is not None else self._sample(index)
        return {"sample": sample, "index": int(index)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """=>  sample (B, C, H, W), float32; index (B,), int64."""
        indices = torch.as_tensor(indices)
        if self._small():
            return {"sample": self.sample_tensor()[indices], "index": indices}
        samples = torch.stack([self._sample(index) for index in indices.tolist()])
        return {"sample": samples, "index": indices}

    def clean(self, index: int) -> Tensor:
        """The picture before contamination, (C, H, W) in [-1, 1]. For evaluation."""
        return _to_sample(self.pictures.picture(index))

    def clean_tensor(self, limit: int | None = None) -> Tensor:
        """`limit` evenly spaced pictures (None: all), those of `sample_tensor`, (N, C, H, W)."""
        return self._stack(self.clean, self._spaced(limit), "reading")

    def sample_tensor(self, limit: int | None = None) -> Tensor:
        """`limit` evenly spaced samples (None: all), (N, C, H, W).

        Evenly spaced, first and last included, because the first N of a sorted folder may all be
        of one class. Kept in memory if it is the whole of a small set.
        """
        indices = self._spaced(limit)
        whole = len(indices) == len(self)
        if self._samples is not None:
            return self._samples if whole else self._samples[indices]
        samples = self._stack(self._sample, indices, "contaminating")
        if whole and self._small():
            self._samples = samples
        return samples

    def materialize(self) -> None:
        """Contaminate a small set now and keep it in memory; nothing happens for a large one.

        To be called before a DataLoader forks its workers, which then share the one copy instead of
        each making its own.
        """
        if self._small():
            self.sample_tensor()

    @property
    def quarantine(self) -> list[dict]:
        """Broken pictures of the source and of the outliers' sources."""
        outliers = [c.pictures for c in self.corruptions if isinstance(c, Outliers)]
        return [row for pictures in (self.pictures, *outliers) for row in pictures.quarantine]

    def manifest(self) -> Iterator[dict]:
        """Rows {"index", "name", "seed", "corruptions": [{"kind", what was drawn}]}."""
        # What is drawn depends on the shape alone (see Corruption): nothing has to be decoded.
        blank = torch.zeros(self.pictures.channels, self.pictures.size, self.pictures.size)
        for index in range(len(self)):
            _, records = self._contaminate(blank, index)
            name = self.pictures.name(index)
            yield {"index": index, "name": name, "seed": self.seed, "corruptions": records}

    def write_manifest(self, path: str | Path) -> None:
        """One row a line, whole or not at all. InputError if it cannot be written."""
        write_jsonl(self.manifest(), path)

    def levels(self) -> Tensor:
        """The true standard deviation of each sample's Gaussian noise, in sample units, (N,).

        0 if there is none. Other corruptions do not count, though what follows the noise (blur,
        JPEG, clipping) changes it.
        """
        return torch.tensor([_level(row["corruptions"]) for row in self.manifest()])

    def fingerprint(self) -> str:
        """SHA-256 over the pictures, the corruptions and the seed."""
        parts = [self.pictures.fingerprint(), self.seed]
        for corruption in self.corruptions:
            parts.append([corruption.kind, _parameters(corruption)])
            if isinstance(corruption, Outliers):
                parts.append(corruption.pictures.fingerprint())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _sample(self, index: int) -> Tensor:
        return _to_sample(self._contaminate(self.pictures.picture(index), index)[0])

    def _contaminate(self, picture: Tensor, index: int) -> tuple[Tensor, list[dict]]:
        records = []
        for position, corruption in enumerate(self.corruptions):
            generator = derive_generator(self.seed, "corruption", position, index)
            if torch.rand((), generator=generator) < corruption.fraction:
                picture, record = corruption.apply(picture, generator)
                records.append({"kind": corruption.kind, **record})
        return picture, records

    def _small(self) -> bool:
        pictures = self.pictures
        return len(self) * pictures.channels * pictures.size**2 * 4 <= SMALL

    def _spaced(self, limit: int | None) -> Tensor:
        """=>  indices (N,), int64, all different."""
        count = len(self) if limit is None else min(limit, len(self))
        return torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()

    def _stack(self, one: Callable[[int], Tensor], indices: Tensor, what: str) -> Tensor:
        shape = (self.pictures.channels, self.pictures.size, self.pictures.size)
        stacked = torch.empty(len(indices), *shape)
        for row, index in enumerate(tqdm(indices.tolist(), what, delay=2, leave=False)):
            stacked[row] = one(index)
        return stacked


def _to_sample(picture: Tensor) -> Tensor:
    return 2 * picture - 1


def _level(records: list[dict]) -> float:
    variance = 0.0
    for record in records:
        if record["kind"] == "gaussian":
            variance += (2 * record["sigma"]) ** 2
        elif record["kind"] == "outliers":  # the noise went with the picture
            variance = 0.0
    return variance**0.5


def _parameters(corruption: Corruption) -> dict:
    return {f.name: getattr(corruption, f.name) for f in fields(corruption) if f.init}
