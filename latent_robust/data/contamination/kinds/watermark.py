"""Watermarks: half-transparent text over an image.

Stock images carry them, and models trained on such images learn to generate them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from latent_robust.data.contamination.corruption import Corruption, Size
from latent_robust.errors import InputError

# Width of the text as a share of the image's width, by position.
WIDTH = {"random": 0.6, "tiled": 0.35}
TALLEST = 0.25  # largest height of the text, as a share of the image's height
SHADOW = 0.06  # offset of the shadow, as a share of the font size


@dataclass(frozen=True)
class Watermark(Corruption):
    """`text` in white with a black shadow, which makes it visible on any image.

    position: "random" for one place, or "tiled" for the complete image from a random corner;
    opacity: in [0, 1], 1 hides the image below. The font is Pillow's own, so every machine draws
    the same watermark.
    """

    kind = "watermark"
    text: str
    opacity: float = 0.5
    position: str = "random"

    def __post_init__(self):
        super().__post_init__()
        text = self.text
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise InputError(
                f"watermark: `text` must be one line of text, got {text!r}; a number needs quotes: "
                "text='2024'"
            )
        self._check("opacity", self.opacity, 0, 1)
        if self.position not in WIDTH:
            raise InputError(
                f"watermark: `position` must be {' or '.join(WIDTH)}, got {self.position!r}"
            )

    def draw(self, index: int, size: Size, generator: Generator) -> dict:
        font = _font_size(self.text, size, WIDTH[self.position])
        height, width = _text_size(self.text, font)
        room = (size[0] - height + 1, size[1] - width + 1)
        if self.position == "tiled":
            room = _period(height, width)
        top, left = (int(torch.randint(max(1, side), (), generator=generator)) for side in room)
        return {
            "text": self.text,
            "opacity": self.opacity,
            "position": self.position,
            "font_size": font,
            "corner": [top, left],
        }

    def change(self, image: Tensor, record: dict, generator: Generator) -> Tensor:
        shift = max(1, round(SHADOW * record["font_size"]))
        for value, offset in ((0.0, shift), (1.0, 0)):
            coverage = record["opacity"] * _coverage(record, image.shape[-2:], offset)
            image = torch.lerp(image, torch.tensor(value), coverage)
        return image


def _coverage(record: dict, size: Size, offset: int) -> Tensor:
    """Share of each pixel that letters cover, (h, w). offset: right and down, in pixels."""
    text, font_size = record["text"], record["font_size"]
    top, left = (corner + offset for corner in record["corner"])
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(font_size)
    corners = [(left, top)]
    if record["position"] == "tiled":
        down, right = _period(*_text_size(text, font_size))
        corners = [
            (x, y)
            for y in range(top - down, size[0], down)
            for x in range(left - right, size[1], right)
        ]
    for corner in corners:
        draw.text(corner, text, fill=255, font=font, anchor="lt")
    return torch.from_numpy(np.array(canvas)).float() / 255


def _period(height: int, width: int) -> Size:
    """Distance (down, right) between tiles, in pixels, for a text of this size."""
    return 2 * height, width + height


def _font_size(text: str, size: Size, share: float) -> int:
    """Font size in pixels. share: wanted width of the text, relative to the image's width."""
    reference = 100
    height, width = _text_size(text, reference)
    scale = min(share * size[1] / width, TALLEST * size[0] / height)
    return max(4, round(reference * scale))  # a smaller font leaves no visible mark


def _text_size(text: str, font_size: int) -> Size:
    """(height, width) of the drawn text, in pixels."""
    box = ImageFont.load_default(font_size).getbbox(text, anchor="lt")
    return max(1, round(box[3])), max(1, round(box[2]))
