"""The base class of all corruptions, and what a corruption knows about its dataset.

A corruption is a frozen dataclass whose fields are the parameters that a user writes.
"""

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
    """Image `index` before any corruption, at `size`: float32 (3, h, w) in [0, 1]."""
    return v2.to_dtype(fit_bucket(pairs.image(index), size), torch.float32, scale=True)


@dataclass(frozen=True)
class CorruptionContext:
    """The dataset that a corruption is prepared for.

    side: the longest side of any image, in pixels; channels: 1 or 3; offline: read other sources
    from the local cache only; pairs: None for images without captions; encode: images
    (B, 3, h, w) in [-1, 1] => latents, differentiable; None without a model.
    """

    side: int
    channels: int
    offline: bool
    pairs: PairSet | None = None
    encode: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Corruption(ABC):
    """One kind of contamination. fraction: probability that an image or pair is hit, in [0, 1].

    `draw` chooses the parameters at random. It sees the size of the image, not its values. `change`
    then applies them. The clean image and the record from `draw` are enough to repeat the change;
    a `noisy` kind also needs the generator.
    """

    kind: ClassVar[str]
    noisy: ClassVar[bool] = False  # `change` uses its generator
    replaces: ClassVar[bool] = False  # nothing of the earlier image remains
    slow: ClassVar[bool] = False  # the result is worth caching
    _: KW_ONLY
    fraction: float

    def __post_init__(self):
        self._check("fraction", self.fraction, 0, 1)

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        """This corruption, ready for one dataset. Raises InputError if the dataset lacks something.

        generators: index => the generator that `hits`, `draw` and `change` use for this index, in
        this order; a word => a generator for choices that concern all images together.
        """
        return self

    def hits(self, index: int, generator: Generator) -> bool:
        """Whether image `index` is corrupted."""
        return bool(torch.rand((), generator=generator) < self.fraction)

    @abstractmethod
    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        """The parameters of the change to image `index`, as the manifest records them."""

    @abstractmethod
    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        """The corrupted image (C, H, W). image: (C, H, W); in [0, 1] before any noise."""

    def apply(self, image: Tensor, generator: Generator, index: int = 0) -> tuple[Tensor, dict]:
        """Returns the corrupted image and its record."""
        record = self.draw(index, tuple(image.shape[-2:]), generator)
        return self.change(image, record, generator), record

    def recaption(self, captions: list[str], index: int, record: dict) -> str:
        """Caption `index` after this corruption. captions: of all pairs, before it."""
        return captions[index]

    def depends_on(self, record: dict) -> Any:
        """What the result of `change` depends on besides image and noise, as JSON data."""
        return record

    def _prepared(self, **values: Any) -> Self:
        """A copy with values for the fields that are not constructor arguments."""
        copy = replace(self)
        for name, value in values.items():
            object.__setattr__(copy, name, value)
        return copy

    def _pairs(self, context: CorruptionContext) -> PairSet:
        if context.pairs is None:
            raise InputError(
                f"{self.kind} needs image-caption pairs, and these images have no captions; "
                "use finetune-latent or `latent-robust contaminate --pairs`"
            )
        return context.pairs

    def _check(self, name: str, value: Any, low: float, high: float, integer: bool = False) -> None:
        types = int if integer else (int, float)
        number = isinstance(value, types) and not isinstance(value, bool) and isfinite(value)
        if not number or not low <= value <= high:
            what = "a whole number" if integer else "a number"
            bounds = f">= {low}" if high == inf else f"in [{low}, {high}]"
            raise InputError(f"{self.kind}: `{name}` must be {what} {bounds}, got {value!r}")
