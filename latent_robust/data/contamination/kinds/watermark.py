"""Text drawn over images, half transparent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from latent_robust.data.contamination.corruption import Corruption, Size
from latent_robust.errors import InputError

# Width of the text as a share of the image's, by position; its height is at most TALLEST of it.
WIDTH = {"random": 0.6, "tiled": 0.35}
TALLEST = 0.25
SHADOW = 0.06  # how far it lies beside the text, as a share of the font's size


@dataclass(frozen=True)
class Watermark(Corruption):
    """`text` at a random place, or tiled over all of the image (from a random corner): white with
    a black shadow, so that it is seen on any image.

    opacity: in [0, 1]; 1 hides what is below. The font is Pillow's own, so that every machine draws
    the same.
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
        for value, moved in ((0.0, shift), (1.0, 0)):
            coverage = record["opacity"] * _coverage(record, image.shape[-2:], moved)
            image = torch.lerp(image, torch.tensor(value), coverage)
        return image


def _coverage(record: dict, size: Size, moved: int) -> Tensor:
    """moved: right and down, in pixels.  =>  the share of each pixel that letters cover, (h, w)."""
    text, font_size = record["text"], record["font_size"]
    top, left = (place + moved for place in record["corner"])
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
    """Of the tiles, for a text of this size."""
    return 2 * height, width + height


def _font_size(text: str, size: Size, share: float) -> int:
    """In pixels: so that the text takes `share` of the image's width."""
    reference = 100
    height, width = _text_size(text, reference)
    scale = min(share * size[1] / width, TALLEST * size[0] / height)
    return max(4, round(reference * scale))  # nothing smaller leaves a mark


def _text_size(text: str, font_size: int) -> Size:
    """Of what is drawn, in pixels."""
    box = ImageFont.load_default(font_size).getbbox(text, anchor="lt")
    return max(1, round(box[3])), max(1, round(box[2]))
