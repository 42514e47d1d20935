"""A dataset of contaminated image-caption pairs, as `finetune-latent` reads them.

Captions are corrupted once for all pairs, because some corruptions exchange them. Images are
corrupted one by one when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from latent_robust.data.buckets import assign_bucket, framing
from latent_robust.data.images import SMALL
from latent_robust.data.pairs import PairSet

from .corruption import (
    Corruption,
    CorruptionContext,
    Size,
    clean_image,
)
from .dataset import ContaminatedDataset, digest, to_sample
from .kinds import CORRUPTIONS
from .kinds.caption import CaptionCorruption


class ContaminatedPairs(ContaminatedDataset):
    """Contaminated pairs: samples (3, h, w) in [-1, 1] and captions. Noise may exceed this range.

    bucket_sizes: (height, width) in pixels; each image is cropped and resized to the nearest one
    before it is contaminated; encode: images (B, 3, h, w) in [-1, 1] => latents, differentiable,
    needed only by encoder-poison, which attacks it; offline: read the outliers' sources from the
    local cache only; trusted: indices of pairs that no corruption hits.

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
        trusted: Sequence[int] = (),
    ):
        self.pairs = pairs
        self.bucket_sizes = [tuple(bucket) for bucket in bucket_sizes]
        self._bucket = [assign_bucket(size, self.bucket_sizes) for size in pairs.sizes]
        self._kept: dict[int, Tensor] = {}
        side = max(max(bucket) for bucket in self.bucket_sizes)
        context = CorruptionContext(
            side=side, channels=3, offline=offline, pairs=pairs, encode=encode
        )
        super().__init__(corruptions, seed, context, trusted)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs.name(index)

    def caption(self, index: int) -> str:
        """The caption after all corruptions."""
        return self._outcome[0][index]

    def bucket(self, index: int) -> Size:
        """(height, width) of the sample, in pixels."""
        return self._bucket[index]

    def framing(self, index: int) -> tuple[int, ...]:
        """SDXL's size and crop conditions of the sample, as `buckets.framing` returns them."""
        return framing(self.pairs.sizes[index], self.bucket(index))

    def sample(self, index: int) -> Tensor:
        """The contaminated sample: float32 (3, h, w). Slow ones are cached, up to SMALL bytes."""
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

    def original(self, index: int) -> Tensor:
        """The image before contamination at its own resolution: (3, H, W) in [-1, 1]."""
        return to_sample(self.pairs.image(index).float() / 255)

    def buckets(self) -> list[list[int]]:
        """The indices of each bucket that has any, each index as often as its pair repeats."""
        buckets: dict[Size, list[int]] = {bucket: [] for bucket in self.bucket_sizes}
        for index, repeats in enumerate(self.pairs.repeats):
            buckets[self.bucket(index)] += [index] * repeats
        return [bucket for bucket in buckets.values() if bucket]

    def records(self, index: int) -> list[dict]:
        return self._outcome[1][index]

    def checksum(self, index: int) -> str:
        """SHA-256 (hex) of everything that `sample(index)` depends on, as a key for caches.

        The caption does not count, and neither does the model that encoder-poison attacks.
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
        """SHA-256 (hex) of the pairs, the buckets, the corruptions and the seed."""
        return self._fingerprint(self.pairs.fingerprint(), self.bucket_sizes)

    @property
    def quarantine(self) -> list[dict]:
        """Unusable pairs of the source and unusable images of the outliers' sources."""
        return [*self.pairs.quarantine, *self._quarantine()]

    def _image(self, index: int) -> Tensor:
        """The clean image at the size of its bucket: float32 (3, h, w) in [0, 1]."""
        return clean_image(self.pairs, index, self.bucket(index))

    @cached_property
    def _outcome(self) -> tuple[list[str], list[list[dict]]]:
        """The captions after all corruptions, and the records of each pair.

        A record also has the previous caption if its corruption changed the caption.
        """
        captions = list(self.pairs.captions)
        records: list[list[dict]] = [[] for _ in captions]
        for position, corruption in enumerate(self.corruptions):
            before = list(captions)
            for index in range(len(self)):
                generator = self._generator(position, index)
                if not self._is_hit(corruption, index, generator):
                    continue
                record = corruption.draw(index, self.bucket(index), generator)
                captions[index] = corruption.recaption(before, index, record)
                changed = captions[index] != before[index]
                previous = {"caption": before[index]} if changed else {}
                records[index].append({"kind": corruption.kind, **record, **previous})
        return captions, records
