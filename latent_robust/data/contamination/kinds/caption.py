"""Corruptions of captions. The image does not change.

Scraped captions are often wrong, missing or cut off; these corruptions imitate that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Self

import torch
from torch import Generator, Tensor

from latent_robust.data.contamination.corruption import Corruption, CorruptionContext, Size
from latent_robust.errors import InputError


class CaptionCorruption(Corruption):
    """Base of the caption corruptions. The manifest records the previous caption."""

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        self._pairs(context)
        return self

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        return {}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        return image


@dataclass(frozen=True)
class CaptionShuffle(CaptionCorruption):
    """Permute the captions of the pairs that are hit, so that each gets another pair's caption.

    The permutation is a derangement of the indices, so two pairs with equal captions may swap them.
    If only one pair is hit, it keeps its caption.
    """

    kind = "caption-shuffle"
    source_of: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        indices = range(len(self._pairs(context)))
        hit = [i for i in indices if Corruption.hits(self, i, generators(i))]
        order = derangement(len(hit), generators("derangement")) if len(hit) > 1 else []
        return self._prepared(source_of={hit[i]: hit[other] for i, other in enumerate(order)})

    def hits(self, index: int, generator: Generator) -> bool:
        return index in self.source_of

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        return {"from": self.source_of[index]}

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        return captions[record["from"]]


@dataclass(frozen=True)
class CaptionDrop(CaptionCorruption):
    """Replace the caption by an empty one."""

    kind = "caption-drop"

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        return ""


@dataclass(frozen=True)
class CaptionTruncate(CaptionCorruption):
    """Keep only the first words of the caption.

    keep: number of words (a whole number >= 1), or share of the words (in (0, 1), rounded up).
    """

    kind = "caption-truncate"
    keep: float

    def __post_init__(self):
        super().__post_init__()
        self._check("keep", self.keep, 0, inf)
        if self.keep == 0 or (self.keep > 1 and self.keep != int(self.keep)):
            raise InputError(
                "caption-truncate: `keep` must be a number of words (1, 2, ...) or a share of them "
                f"in (0, 1), got {self.keep!r}; use caption-drop to remove all words"
            )

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        words = captions[index].split()
        kept = ceil(self.keep * len(words)) if self.keep < 1 else int(self.keep)
        return captions[index] if kept >= len(words) else " ".join(words[:kept])


def derangement(count: int, generator: Generator) -> list[int]:
    """A uniformly random permutation of 0..count-1 without a fixed point. count: >= 2.

    By rejection: about one permutation in e = 2.7 has no fixed point.
    """
    identity = torch.arange(count)
    while True:
        order = torch.randperm(count, generator=generator)
        if not (order == identity).any():
            return order.tolist()
