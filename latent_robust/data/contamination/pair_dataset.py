"""Pairs of images and captions made dirty on purpose, with a record of what was done to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from latent_robust.data.buckets import assign_bucket, framing
from latent_robust.data.images import SMALL
from latent_robust.data.pairs import PairSet

from .corruption import (
    Corruption,
    Size,
    Surroundings,
    clean_image,
)
from .dataset import Contaminated, digest, to_sample
from .kinds import CORRUPTIONS
from .kinds.caption import CaptionCorruption


class ContaminatedPairs(Contaminated):
    """Samples (3, h, w) in [-1, 1], which Gaussian noise may leave, and captions.

    bucket_sizes: (height, width), to the nearest of which each image is cropped and resized before it
    is contaminated; encode: images (B, 3, h, w) in [-1, 1] => latents, differentiable: what
    encoder-poison attacks, needed by nothing else; offline: of the outliers' sources.

    Raises InputError for a corruption that these pairs do not allow.
    """

    def __init__(
        self,
        pairs: PairSet,
        corruptions: Sequence[Corruption],
        seed: int,
        bucket_sizes: list[Size],
        encode: Callable[[Tensor], Tensor] | None = None,
        offline: bool = False,
    ):
        self.pairs = pairs
        self.bucket_sizes = [tuple(bucket) for bucket in bucket_sizes]
        self._bucket = [assign_bucket(size, self.bucket_sizes) for size in pairs.sizes]
        self._kept: dict[int, Tensor] = {}
        side = max(max(bucket) for bucket in self.bucket_sizes)
        surroundings = Surroundings(
            side=side, channels=3, offline=offline, pairs=pairs, encode=encode
        )
        super().__init__(corruptions, seed, surroundings)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs.name(index)

    def caption(self, index: int) -> str:
        return self._outcome[0][index]

    def bucket(self, index: int) -> Size:
        """=>  (height, width)."""
        return self._bucket[index]

    def framing(self, index: int) -> tuple[int, ...]:
        """=>  the image's own height and width, top and left of the crop, height and width: see
        `buckets.framing`."""
        return framing(self.pairs.sizes[index], self.bucket(index))

    def sample(self, index: int) -> Tensor:
        """=>  (3, h, w), float32."""
        if index in self._kept:
            return self._kept[index].clone()
        sample = to_sample(self._contaminate(self._image(index), index)[0])
        slow = any(CORRUPTIONS[record["kind"]].slow for record in self.records(index))
        if slow and (len(self._kept) + 1) * sample.nbytes <= SMALL:
            self._kept[index] = sample.clone()
        return sample

    def clean(self, index: int) -> Tensor:
        """The sample before contamination, (3, h, w) in [-1, 1]. For evaluation."""
        return to_sample(self._image(index))

    def buckets(self) -> list[list[int]]:
        """The indices by bucket, each as often as the pair counts in an epoch."""
        buckets: dict[Size, list[int]] = {bucket: [] for bucket in self.bucket_sizes}
        for index, repeats in enumerate(self.pairs.repeats):
            buckets[self.bucket(index)] += [index] * repeats
        return [bucket for bucket in buckets.values() if bucket]

    def records(self, index: int) -> list[dict]:
        return self._outcome[1][index]

    def checksum(self, index: int) -> str:
        """SHA-256 (hex) of all that `sample` depends on for this index; not the caption.

        Not of the model that encoder-poison attacks.
        """
        parts = [self.pairs.checksum(index)]
        for corruption, record, generator in self._hits(index, self.bucket(index)):
            if isinstance(corruption, CaptionCorruption):
                continue
            if corruption.replaces:
                parts.clear()
            noise = generator.initial_seed() if corruption.noisy else None
            parts.append([corruption.kind, corruption.depends_on(record), noise])
        return digest([parts, self.bucket(index)])

    def fingerprint(self) -> str:
        """SHA-256 over the pairs, the buckets, the corruptions and the seed."""
        return self._fingerprint(self.pairs.fingerprint(), self.bucket_sizes)

    @property
    def quarantine(self) -> list[dict]:
        """Broken pairs of the source and broken images of the outliers' sources."""
        return [*self.pairs.quarantine, *self._quarantine()]

    def _image(self, index: int) -> Tensor:
        """=>  (3, h, w), float32 in [0, 1], at its bucket's size."""
        return clean_image(self.pairs, index, self.bucket(index))

    @cached_property
    def _outcome(self) -> tuple[list[str], list[list[dict]]]:
        """=>  the captions after all corruptions, and the records, with the captions as they were
        before each corruption that changed them."""
        captions = list(self.pairs.captions)
        records: list[list[dict]] = [[] for _ in captions]
        for position, corruption in enumerate(self.corruptions):
            before = list(captions)
            for index in range(len(self)):
                generator = self._generator(position, index)
                if not corruption.hits(index, generator):
                    continue
                drawn = corruption.draw(index, self.bucket(index), generator)
                captions[index] = corruption.recaption(before, index, drawn)
                changed = captions[index] != before[index]
                old = {"caption": before[index]} if changed else {}
                records[index].append({"kind": corruption.kind, **drawn, **old})
        return captions, records
