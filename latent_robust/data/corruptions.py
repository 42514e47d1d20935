"""The ways in which pictures get dirty.

Each is a dataclass that validates itself; `fraction` is the share of the pictures that it hits.
`apply(picture, generator)` takes (C, H, W), nominally in [0, 1], and gives the dirty picture and
what was drawn, which with the clean picture is enough to do it again (but for the noise itself).
What is drawn, and the record of it, may depend on the picture's shape but not on its values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field, replace
from io import BytesIO
from math import ceil, inf, isfinite
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as v2

from latent_robust.errors import InputError

from .pictures import PictureSet
from .sources import open_pictures


@dataclass(frozen=True)
class Corruption(ABC):
    kind: ClassVar[str]
    _: KW_ONLY
    fraction: float

    def __post_init__(self):
        self._check("fraction", self.fraction, 0, 1)

    @abstractmethod
    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        """=>  the dirty picture and what was drawn."""

    def prepare(self, pictures: PictureSet) -> Corruption:
        """The same, ready for pictures of this size; the outliers are opened here."""
        return self

    def _check(self, name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
        types = int if whole else (int, float)
        number = isinstance(value, types) and not isinstance(value, bool) and isfinite(value)
        if not number or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            bounds = f">= {low}" if high == inf else f"in [{low}, {high}]"
            raise InputError(f"{self.kind}: `{name}` must be {what} {bounds}, got {value!r}")


@dataclass(frozen=True)
class Gaussian(Corruption):
    """picture + sigma * N(0, I). sigma: in units of the [0, 1] range, or (low, high): uniform, per
    picture. Not clipped by default: a clipped noise has a mean."""

    kind = "gaussian"
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

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        sigma = self.sigma
        if isinstance(sigma, tuple):
            low, high = sigma
            sigma = low + (high - low) * torch.rand((), generator=generator).item()
        dirty = picture + sigma * torch.randn(picture.shape, generator=generator)
        return dirty.clamp(0, 1) if self.clip else dirty, {"sigma": sigma, "clip": self.clip}


@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Each pixel, all channels together, becomes black or white with probability `amount`."""

    kind = "salt-and-pepper"
    amount: float

    def __post_init__(self):
        super().__post_init__()
        self._check("amount", self.amount, 0, 1)

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        u = torch.rand(picture.shape[-2:], generator=generator)
        hit = u < self.amount
        white = u < self.amount / 2
        return torch.where(hit, white.to(picture), picture), {
            "amount": self.amount,
            "pixels": int(hit.sum()),
        }


@dataclass(frozen=True)
class Outliers(Corruption):
    """The picture is replaced by one of another source."""

    kind = "outliers"
    source: str
    pictures: PictureSet | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.source, str) or not self.source:
            raise InputError(f"outliers: `source` must be a data set, got {self.source!r}")

    def prepare(self, pictures: PictureSet) -> Corruption:
        prepared = replace(self)
        others = open_pictures(
            self.source,
            size=pictures.size,
            channels=pictures.channels,
            offline=pictures.offline,
        )
        object.__setattr__(prepared, "pictures", others)
        return prepared

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        if self.pictures is None:
            raise ValueError("call `prepare` first, which opens the outliers' source")
        index = int(torch.randint(len(self.pictures), (), generator=generator))
        record = {"source": self.source, "outlier": index, "name": self.pictures.name(index)}
        return self.pictures.picture(index), record


@dataclass(frozen=True)
class Blocks(Corruption):
    """`count` squares are missing. size: their side as a share of the picture's shorter side."""

    kind = "blocks"
    size: float
    count: int = 1
    fill: str = "gray"

    def __post_init__(self):
        super().__post_init__()
        self._check("size", self.size, 0, 1)
        self._check("count", self.count, 1, inf, whole=True)
        if self.fill not in ("gray", "black"):
            raise InputError(f"blocks: `fill` must be gray or black, got {self.fill!r}")

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        height, width = picture.shape[-2:]
        side = max(1, round(self.size * min(height, width)))
        value = torch.tensor(0.5 if self.fill == "gray" else 0.0)
        boxes = []
        for _ in range(self.count):
            top = int(torch.randint(height - side + 1, (), generator=generator))
            left = int(torch.randint(width - side + 1, (), generator=generator))
            picture = v2.erase(picture, top, left, side, side, value)
            boxes.append([top, left, side, side])
        return picture, {"fill": self.fill, "boxes": boxes}


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur. sigma: in pixels."""

    kind = "blur"
    sigma: float

    def __post_init__(self):
        super().__post_init__()
        self._check("sigma", self.sigma, 1e-3, inf)

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        # 3 sigma hold 99.7 % of the kernel; reflection cannot reach beyond the picture.
        radius = min(ceil(3 * self.sigma), min(picture.shape[-2:]) - 1)
        kernel = 2 * radius + 1
        blurred = v2.gaussian_blur(picture, [kernel, kernel], [self.sigma, self.sigma])
        return blurred, {"sigma": self.sigma, "kernel": kernel}


@dataclass(frozen=True)
class Jpeg(Corruption):
    """Compressed and decompressed, which also clips and rounds to 8 bits. quality: 1..100."""

    kind = "jpeg"
    quality: int

    def __post_init__(self):
        super().__post_init__()
        self._check("quality", self.quality, 1, 100, whole=True)

    def apply(self, picture: Tensor, generator: Generator) -> tuple[Tensor, dict]:
        # Pillow, bit-equal to torchvision's v2.jpeg: that is deprecated since torchvision 0.29 and
        # would warn for every picture.
        file = BytesIO()
        v2.to_pil_image(to_bytes(picture)).save(file, "JPEG", quality=self.quality)
        decoded = v2.pil_to_tensor(Image.open(file))
        return v2.to_dtype(decoded, torch.float32, scale=True), {"quality": self.quality}


def to_bytes(picture: Tensor) -> Tensor:
    """[0, 1]  =>  uint8, clipped and rounded."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


CORRUPTIONS: dict[str, type[Corruption]] = {
    corruption.kind: corruption
    for corruption in (Gaussian, SaltAndPepper, Outliers, Blocks, Blur, Jpeg)
}
