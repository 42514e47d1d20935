"""The ways in which captions get dirty. The image stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Self

import torch
from torch import Generator, Tensor

from latent_robust.data.contamination.corruption import Corruption, Size, Surroundings
from latent_robust.errors import InputError


class CaptionCorruption(Corruption):
    """Changes no image; the manifest holds the caption that was there before."""

    def prepare(
        self, surroundings: Surroundings, generators: Callable[[int | str], Generator]
    ) -> Self:
        self._pairs(surroundings)
        return self

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        return {}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        return image


@dataclass(frozen=True)
class CaptionShuffle(CaptionCorruption):
    """The captions of the pairs that are hit change places: each gets another's.

    That is a derangement of indices: pairs whose captions read the same may swap them. A pair that
    is hit alone keeps its caption.
    """

    kind = "caption-shuffle"
    giver: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prepare(
        self, surroundings: Surroundings, generators: Callable[[int | str], Generator]
    ) -> Self:
        everyone = range(len(self._pairs(surroundings)))
        hit = [i for i in everyone if Corruption.hits(self, i, generators(i))]
        order = derangement(len(hit), generators("derangement")) if len(hit) > 1 else []
        return self._prepared(giver={hit[place]: hit[other] for place, other in enumerate(order)})

    def hits(self, index: int, generator: Generator) -> bool:
        return index in self.giver

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        return {"from": self.giver[index]}

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        return captions[record["from"]]


@dataclass(frozen=True)
class CaptionDrop(CaptionCorruption):
    """The caption becomes the empty text."""

    kind = "caption-drop"

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        return ""


@dataclass(frozen=True)
class CaptionTruncate(CaptionCorruption):
    """Only the first words stay. keep: how many (a whole number, >= 1), or their share (a fraction
    in (0, 1), rounded up)."""

    kind = "caption-truncate"
    keep: float

    def __post_init__(self):
        super().__post_init__()
        self._check("keep", self.keep, 0, inf)
        if self.keep == 0 or (self.keep > 1 and self.keep != int(self.keep)):
            raise InputError(
                "caption-truncate: `keep` must be a number of words (1, 2, ...) or a share of them "
                f"in (0, 1), got {self.keep!r}; caption-drop takes all words away"
            )

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        words = captions[index].split()
        kept = ceil(self.keep * len(words)) if self.keep < 1 else int(self.keep)
        return captions[index] if kept >= len(words) else " ".join(words[:kept])


def derangement(count: int, generator: Generator) -> list[int]:
    """A permutation of 0..count-1 in which nothing keeps its place, all equally likely; count >= 2.

    By rejection: one permutation in e = 2.7 is a derangement.
    """
    places = torch.arange(count)
    while True:
        order = torch.randperm(count, generator=generator)
        if not (order == places).any():
            return order.tolist()
