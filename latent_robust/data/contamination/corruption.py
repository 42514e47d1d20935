"""What every way of getting dirty has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.data.buckets import fit_bucket
from latent_robust.errors import InputError

if TYPE_CHECKING:
    from latent_robust.data.pairs import PairSet

Size = tuple[int, int]  # (height, width) in pixels


def clean_image(pairs: PairSet, index: int, size: Size) -> Tensor:
    """=>  (3, *size), float32 in [0, 1]."""
    return v2.to_dtype(fit_bucket(pairs.image(index), size), torch.float32, scale=True)


@dataclass(frozen=True)
class Surroundings:
    """What a corruption may see besides its image.

    side: the longest of any image, in pixels; pairs: None where images have no captions;
    encode: (B, 3, h, w) in [-1, 1] => latents, differentiable; None where there is no model.
    """

    side: int
    channels: int
    offline: bool
    pairs: PairSet | None = None
    encode: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Corruption(ABC):
    """fraction: the share of the images, or pairs, that it hits.

    First `draw` decides, from the size of the image and not from its values, then `change` does
    it. The record that `draw` gives is, with the clean image, enough to do it again, but for the
    noise of those that are `noisy`.
    """

    kind: ClassVar[str]
    noisy: ClassVar[bool] = False  # `change` draws noise
    replaces: ClassVar[bool] = False  # nothing of what was there before is left
    slow: ClassVar[bool] = False  # worth keeping the result
    _: KW_ONLY
    fraction: float

    def __post_init__(self):
        self._check("fraction", self.fraction, 0, 1)

    def prepare(
        self, surroundings: Surroundings, generators: Callable[[int | str], Generator]
    ) -> Self:
        """The same, ready for images of these surroundings.

        generators: index => the generator that `hits`, `draw` and `change` use for this index, one
        after the other; a word => a generator for what is drawn for all together.
        """
        return self

    def hits(self, index: int, generator: Generator) -> bool:
        return bool(torch.rand((), generator=generator) < self.fraction)

    @abstractmethod
    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        """=>  what is to be done to image `index`, as the manifest records it."""

    @abstractmethod
    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        """image: (C, H, W), nominally in [0, 1].  =>  the dirty image, (C, H, W)."""

    def apply(self, image: Tensor, generator: Generator, index: int = 0) -> tuple[Tensor, dict]:
        """=>  the dirty image and what was drawn."""
        record = self.draw(index, tuple(image.shape[-2:]), generator)
        return self.change(image, record, generator), record

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        """captions: of all pairs, before this corruption.  =>  caption `index` after it."""
        return captions[index]

    def depends_on(self, record: dict) -> Any:
        """All that `change` depends on, but for the image it is given and the noise; for JSON."""
        return record

    def _prepared(self, **values: Any) -> Self:
        """A copy whose fields outside of the constructor are set."""
        copy = replace(self)
        for name, value in values.items():
            object.__setattr__(copy, name, value)
        return copy

    def _pairs(self, surroundings: Surroundings) -> PairSet:
        if surroundings.pairs is None:
            raise InputError(
                f"{self.kind} is for pairs of images and captions; these images have no "
                "captions (finetune-latent and `latent-robust contaminate --pairs` take pairs)"
            )
        return surroundings.pairs

    def _check(self, name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
        types = int if whole else (int, float)
        number = isinstance(value, types) and not isinstance(value, bool) and isfinite(value)
        if not number or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            bounds = f">= {low}" if high == inf else f"in [{low}, {high}]"
            raise InputError(f"{self.kind}: `{name}` must be {what} {bounds}, got {value!r}")
