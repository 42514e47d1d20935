"""Near duplicates: slightly changed copies of a few pairs.

Scraped datasets contain many of them, and models memorize what is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.data.contamination.corruption import (
    Corruption,
    CorruptionContext,
    Size,
    clean_image,
)
from latent_robust.errors import InputError

if TYPE_CHECKING:
    from latent_robust.data.pairs import PairSet

CROP = 0.9  # smallest share of each side that a crop keeps
BRIGHTNESS = 0.1  # largest relative change of the brightness


@dataclass(frozen=True)
class NearDuplicate(Corruption):
    """Replace the pair by a changed copy of one of `sources` original pairs, with its caption.

    The copy is cropped, brighter or darker, and mirrored in half of the cases. The originals
    themselves are never hit. sources: >= 1, less than the number of pairs.
    """

    kind = "near-duplicate"
    replaces = True
    sources: int
    pairs: PairSet | None = field(default=None, init=False, repr=False, compare=False)
    originals: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        self._check("sources", self.sources, 1, inf, integer=True)

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        pairs = self._pairs(context)
        if self.sources >= len(pairs):
            raise InputError(
                f"near-duplicate: `sources` must be less than the {len(pairs)} pairs there are, "
                f"got {self.sources}"
            )
        order = torch.randperm(len(pairs), generator=generators("originals"))
        return self._prepared(pairs=pairs, originals=order[: self.sources].tolist())

    def hits(self, index: int, generator: Generator) -> bool:
        return super().hits(index, generator) and index not in self.originals

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        original = self.originals[_below(self.sources, generator)]
        share, brightness = torch.rand(2, generator=generator).tolist()
        height, width = (round(side * (CROP + (1 - CROP) * share)) for side in size)
        top = _below(size[0] - height + 1, generator)
        left = _below(size[1] - width + 1, generator)
        return {
            "original": original,
            "crop": [top, left, height, width],
            "brightness": 1 + BRIGHTNESS * (2 * brightness - 1),
            "mirrored": bool(_below(2, generator)),
        }

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        size = image.shape[-2:]
        copy = clean_image(self.pairs, record["original"], size)
        copy = v2.resized_crop(copy, *record["crop"], size, antialias=True)
        copy = v2.adjust_brightness(copy, record["brightness"])
        return v2.horizontal_flip(copy) if record["mirrored"] else copy

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        return self.pairs.captions[record["original"]]

    def depends_on(self, record: dict) -> Any:
        return {**record, "original": self.pairs.checksum(record["original"])}


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
