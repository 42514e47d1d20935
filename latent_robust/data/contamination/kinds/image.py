"""Corruptions that change or replace one image.

Each is a frozen dataclass that validates its parameters when it is created.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from math import ceil, inf
from typing import Any, Self

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.data.buckets import fit_bucket
from latent_robust.data.contamination.corruption import Corruption, CorruptionContext, Size
from latent_robust.data.images import ImageSet, open_images
from latent_robust.errors import InputError


@dataclass(frozen=True)
class Gaussian(Corruption):
    """image + sigma * N(0, I).

    sigma: in units of the [0, 1] range; (low, high) draws it uniformly for each image; clip: clip
    the result to [0, 1]. The default does not clip, because clipped noise has a nonzero mean.
    """

    kind = "gaussian"
    noisy = True
    sigma: float | tuple[float, float]
    clip: bool = False

    def __post_init__(self):
        super().__post_init__()
        pair = self.sigma if isinstance(self.sigma, (list, tuple)) else (self.sigma, self.sigma)
        if len(pair) != 2:
            raise InputError(
                f"gaussian: `sigma` must be a number or [low, high], got {self.sigma!r}"
            )
        self._check("sigma", pair[0], 0, inf)
        self._check("sigma", pair[1], pair[0], inf)
        if isinstance(self.sigma, list):
            object.__setattr__(self, "sigma", tuple(pair))
        if not isinstance(self.clip, bool):
            raise InputError(f"gaussian: `clip` must be true or false, got {self.clip!r}")

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        sigma = self.sigma
        if isinstance(sigma, tuple):
            low, high = sigma
            sigma = low + (high - low) * torch.rand((), generator=generator).item()
        return {"sigma": sigma, "clip": self.clip}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        dirty = image + record["sigma"] * torch.randn(image.shape, generator=generator)
        return dirty.clamp(0, 1) if record["clip"] else dirty


@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Each pixel becomes black or white, all channels alike, with probability `amount`."""

    kind = "salt-and-pepper"
    noisy = True
    amount: float

    def __post_init__(self):
        super().__post_init__()
        self._check("amount", self.amount, 0, 1)

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        # A copy of the generator, because `change` must draw the same pixels again.
        u = torch.rand(size, generator=generator.clone_state())
        return {"amount": self.amount, "pixels": int((u < self.amount).sum())}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        u = torch.rand(image.shape[-2:], generator=generator)
        white = u < record["amount"] / 2
        return torch.where(u < record["amount"], white.to(image), image)


@dataclass(frozen=True)
class Outliers(Corruption):
    """Replace the image by a random image of another dataset. source: any `--data` of images."""

    kind = "outliers"
    replaces = True
    source: str
    images: ImageSet | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.source, str) or not self.source:
            raise InputError(f"outliers: `source` must name a dataset, got {self.source!r}")

    def prepare(
        self, context: CorruptionContext, generators: Callable[[int | str], Generator]
    ) -> Self:
        others = open_images(
            self.source,
            size=context.side,
            channels=context.channels,
            offline=context.offline,
        )
        return self._prepared(images=others)

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        if self.images is None:
            raise ValueError("the outliers' source is not open; call `prepare` before `draw`")
        outlier = int(torch.randint(len(self.images), (), generator=generator))
        return {"source": self.source, "outlier": outlier, "name": self.images.name(outlier)}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        return fit_bucket(self.images.image(record["outlier"]), image.shape[-2:])

    def depends_on(self, record: dict) -> Any:
        return hashlib.sha256(self.images.image(record["outlier"]).numpy()).hexdigest()


@dataclass(frozen=True)
class Blocks(Corruption):
    """Cover `count` random squares. size: their side as a share of the image's shorter side, in
    [0, 1]; fill: "gray" or "black"."""

    kind = "blocks"
    size: float
    count: int = 1
    fill: str = "gray"

    def __post_init__(self):
        super().__post_init__()
        self._check("size", self.size, 0, 1)
        self._check("count", self.count, 1, inf, integer=True)
        if self.fill not in ("gray", "black"):
            raise InputError(f"blocks: `fill` must be gray or black, got {self.fill!r}")

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        height, width = size
        side = max(1, round(self.size * min(height, width)))
        boxes = []
        for _ in range(self.count):
            top = int(torch.randint(height - side + 1, (), generator=generator))
            left = int(torch.randint(width - side + 1, (), generator=generator))
            boxes.append([top, left, side, side])
        return {"fill": self.fill, "boxes": boxes}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        value = torch.tensor(0.5 if record["fill"] == "gray" else 0.0)
        for top, left, height, width in record["boxes"]:
            image = v2.erase(image, top, left, height, width, value)
        return image


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur. sigma: in pixels."""

    kind = "blur"
    sigma: float

    def __post_init__(self):
        super().__post_init__()
        self._check("sigma", self.sigma, 1e-3, inf)

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        # 3 sigma cover 99.7 % of the kernel; reflection padding must be smaller than the image.
        radius = min(ceil(3 * self.sigma), min(size) - 1)
        return {"sigma": self.sigma, "kernel": 2 * radius + 1}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        return v2.gaussian_blur(image, [record["kernel"]] * 2, [record["sigma"]] * 2)


@dataclass(frozen=True)
class Jpeg(Corruption):
    """JPEG compression, which also clips and rounds to 8 bits. quality: 1..100."""

    kind = "jpeg"
    quality: int

    def __post_init__(self):
        super().__post_init__()
        self._check("quality", self.quality, 1, 100, integer=True)

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        return {"quality": self.quality}

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        # Pillow gives the same bits as torchvision's v2.jpeg, which is deprecated since torchvision
        # 0.29 and warns for every image.
        file = BytesIO()
        v2.to_pil_image(to_bytes(image)).save(file, "JPEG", quality=record["quality"])
        decoded = v2.pil_to_tensor(Image.open(file))
        return v2.to_dtype(decoded, torch.float32, scale=True)


def to_bytes(image: Tensor) -> Tensor:
    """[0, 1]  =>  uint8, clipped and rounded."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
