"""A dataset of contaminated images, as `train-pixel` reads them.

Small datasets are contaminated once and kept in memory; large ones are contaminated per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from latent_robust.data.images import SMALL, ImageSet, JoinedImages
from latent_robust.subset import evenly_spaced

from .corruption import Corruption, CorruptionContext
from .dataset import ContaminatedDataset, to_sample


class ContaminatedImages(ContaminatedDataset, Dataset):
    """Contaminated images as samples in [-1, 1]. Gaussian noise may exceed this range.

    trusted: indices of images that no corruption hits.

    `__getitems__` returns a complete batch as one dict; a DataLoader must not collate it again.
    """

    def __init__(
        self,
        images: ImageSet | JoinedImages,
        corruptions: Sequence[Corruption],
        seed: int,
        trusted: Sequence[int] = (),
    ):
        self.images = images
        self._samples: Tensor | None = None
        context = CorruptionContext(
            side=images.size, channels=images.channels, offline=images.offline
        )
        super().__init__(corruptions, seed, context, trusted)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """Returns {"sample": float32 (C, H, W), "index": int}."""
        sample = self._samples[index] if self._samples is not None else self._sample(index)
        return {"sample": sample, "index": int(index)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Returns {"sample": float32 (B, C, H, W), "index": int64 (B,)}."""
        indices = torch.as_tensor(indices)
        if self._small():
            return {"sample": self.sample_tensor()[indices], "index": indices}
        samples = torch.stack([self._sample(index) for index in indices.tolist()])
        return {"sample": samples, "index": indices}

    def clean(self, index: int) -> Tensor:
        """The image before contamination, (C, H, W) in [-1, 1]. For evaluation."""
        return to_sample(self.images.image(index))

    def clean_tensor(self, limit: int | None = None) -> Tensor:
        """Clean versions of `sample_tensor(limit)`: (N, C, H, W) in [-1, 1]. For evaluation."""
        return self._stack(self.clean, evenly_spaced(len(self), limit), "reading")

    def sample_tensor(self, limit: int | None = None) -> Tensor:
        """`limit` samples (None: all): float32 (N, C, H, W).

        They are evenly spaced, first and last included, because the first N of a sorted folder may
        all be of one class. All samples of a small dataset are kept in memory.
        """
        indices = evenly_spaced(len(self), limit)
        complete = len(indices) == len(self)
        if self._samples is not None:
            return self._samples if complete else self._samples[indices]
        samples = self._stack(self._sample, indices, "contaminating")
        if complete and self._small():
            self._samples = samples
        return samples

    def originals(self, limit: int) -> Iterator[Tensor]:
        """At most `limit` images before contamination, (C, H, W) in [-1, 1], at their own
        resolution."""
        return (to_sample(self.images.original(i)) for i in evenly_spaced(len(self), limit))

    def fit(self, image: Tensor) -> Tensor:
        """Crop and resize an image (C, H, W) as the samples were."""
        return self.images.fit(image)

    def materialize(self) -> None:
        """Contaminate a small dataset now and keep it in memory; do nothing for a large one.

        Call this before a DataLoader forks its workers. They then share one copy; otherwise each
        makes its own.
        """
        if self._small():
            self.sample_tensor()

    @property
    def quarantine(self) -> list[dict]:
        """Unusable images of the source and of the outliers' sources."""
        return [*self.images.quarantine, *self._quarantine()]

    def name(self, index: int) -> str:
        return self.images.name(index)

    def records(self, index: int) -> list[dict]:
        size = (self.images.size, self.images.size)
        return [{"kind": c.kind, **record} for c, record, _ in self._hits(index, size)]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the images, the corruptions and the seed."""
        return self._fingerprint(self.images.fingerprint())

    def _sample(self, index: int) -> Tensor:
        return to_sample(self._contaminate(self.images.image(index), index)[0])

    def _small(self) -> bool:
        images = self.images
        return len(self) * images.channels * images.size**2 * 4 <= SMALL

    def _stack(self, one: Callable[[int], Tensor], indices: list[int], what: str) -> Tensor:
        shape = (self.images.channels, self.images.size, self.images.size)
        stacked = torch.empty(len(indices), *shape)
        for row, index in enumerate(tqdm(indices, what, delay=2, leave=False)):
            stacked[row] = one(index)
        return stacked
