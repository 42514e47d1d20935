"""Poisoned images: they look unchanged, but a VAE encodes them like other images.

They mislead the training of a latent model, and inspecting the images does not reveal them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Generator, Tensor

from latent_robust.data.contamination.corruption import (
    Corruption,
    CorruptionContext,
    Size,
    clean_image,
)
from latent_robust.errors import InputError

if TYPE_CHECKING:
    from latent_robust.data.pairs import PairSet


@dataclass(frozen=True)
class EncoderPoison(Corruption):
    """image + delta with |delta| <= radius, encoded like another image of the dataset.

    This is the encoder attack of PhotoGuard (Salman et al. 2023). radius, step_size: in units of
    the [0, 1] range; steps: >= 1; step_size: default 2.5 radius / steps, so that the attack can
    reach a corner of the box and leave it again (Madry et al. 2018).
    """

    kind = "encoder-poison"
    slow = True
    radius: float
    steps: int = 40
    step_size: float | None = None
    pairs: PairSet | None = field(default=None, init=False, repr=False, compare=False)
    encode: Callable[[Tensor], Tensor] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        super().__post_init__()
        self._check("radius", self.radius, 0, 1)
        self._check("steps", self.steps, 1, inf, integer=True)
        if self.step_size is not None:
            self._check("step_size", self.step_size, 0, 1)

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        pairs = self._pairs(context)
        if context.encode is None:
            raise InputError(
                "encoder-poison attacks the encoder of a model; choose the model with --model"
            )
        if len(pairs) < 2:
            raise InputError(
                "encoder-poison needs at least 2 images, got 1: it imitates another image"
            )
        return self._prepared(pairs=pairs, encode=context.encode)

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        # A uniformly random other image.
        step = 1 + int(torch.randint(len(self.pairs) - 1, (), generator=generator))
        step_size = 2.5 * self.radius / self.steps if self.step_size is None else self.step_size
        return {
            "target": (index + step) % len(self.pairs),
            "radius": self.radius,
            "steps": self.steps,
            "step_size": step_size,
        }

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        return imitate(
            image,
            clean_image(self.pairs, record["target"], image.shape[-2:]),
            lambda images: self.encode(2 * images - 1),
            radius=record["radius"],
            steps=record["steps"],
            step_size=record["step_size"],
        )

    def depends_on(self, record: dict) -> Any:
        return {**record, "target": self.pairs.checksum(record["target"])}


def imitate(
    image: Tensor,
    target: Tensor,
    encode: Callable[[Tensor], Tensor],
    *,
    radius: float,
    steps: int,
    step_size: float,
) -> Tensor:
    """Projected gradient descent on || encode(image + delta) - encode(target) ||^2.

    image, target: (3, h, w) in [0, 1]; encode: (1, 3, h, w) => latents, differentiable. Returns the
    step whose encoding is nearest to the target's, or the image itself. It is within `radius` of
    the image, and in [0, 1] wherever the image is.
    """
    with torch.no_grad():
        target_latents = encode(target[None])
    low = torch.maximum(image - radius, image.clamp(max=0))
    high = torch.minimum(image + radius, image.clamp(min=1))
    dirty, best, nearest = image, image, inf
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = dirty.detach().requires_grad_()
            distance = (encode(leaf[None]) - target_latents).float().square().sum()
            if not distance.requires_grad:
                raise ValueError("`encode` must be differentiable; its latents have no gradient")
            if distance.item() < nearest:
                best, nearest = dirty, distance.item()
            if step < steps:
                (gradient,) = torch.autograd.grad(distance, leaf)
                dirty = torch.clamp(dirty - step_size * gradient.sign(), low, high)
    return best
