"""Synthetic captioned scenes: one shape of one colour on a plain background.

Every fact in a caption is known, so `latent/scene_match.py` can check whether a generated image
matches its prompt. The demo model is trained on BASE_SHAPES only; a LoRA then teaches it the
CONCEPT_SHAPES.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from latent_robust.core.seeds import derive_generator

SIDE = 32  # pixels
OVERSAMPLING = 8  # shapes are drawn 8 times larger, then averaged down

BASE_SHAPES = ("circle", "square", "triangle", "diamond", "cross")
CONCEPT_SHAPES = ("star", "ring")
COLORS = {
    "red": (215, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (245, 220, 50),
    "green": (45, 160, 70),
    "blue": (45, 85, 215),
    "purple": (145, 55, 180),
}
BACKGROUNDS = {
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (240, 240, 240),
    "tan": (205, 175, 140),
    "pink": (240, 175, 195),
}
TINT = 10  # largest difference from the colours above, per channel, of 255

SIZES = {"small": 6.5, "large": 9.0}  # radius in pixels
POSITIONS = {  # column and row of a 3 x 3 grid
    "top left": (-1, -1), "top": (0, -1), "top right": (1, -1),
    "left": (-1, 0), "center": (0, 0), "right": (1, 0),
    "bottom left": (-1, 1), "bottom": (0, 1), "bottom right": (1, 1),
}  # fmt: skip
SPACING = 5.0  # pixels between the columns and between the rows of the grid
JITTER = 1.0  # largest shift of the center in pixels; the radius varies by half of it

CAPTIONS = (
    "a {size} {color} {shape} at the {position} on a {background} background",
    "a {color} {shape} on a {background} background, {size}, at the {position}",
    "a picture of a {size} {color} {shape} on {background}, {position}",
    "{size} {color} {shape}, {position}, {background} background",
    "a {color} {shape} on a {background} background",
)

_POLYGONS = {  # corners in units of the radius, y down
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
    "star": [
        ((1, 0.42)[i % 2] * sin(pi * i / 5), -(1, 0.42)[i % 2] * cos(pi * i / 5))
        for i in range(10)
    ],
}  # fmt: skip
_DISCS = {"circle": (0.9, 0.0), "ring": (0.95, 0.5)}  # outer and inner radius


@dataclass(frozen=True)
class Scene:
    """One scene. center: x, y in pixels from the upper left corner; radius: pixels; rgb: 0..255."""

    shape: str
    color: str
    position: str
    size: str
    background: str
    caption: str
    center: tuple[float, float]
    radius: float
    rgb: tuple[float, float, float]
    background_rgb: tuple[float, float, float]


def sample_scene(index: int, seed: int, shapes: Sequence[str] = BASE_SHAPES) -> Scene:
    """Scene number `index`. It depends on the arguments only, not on how many scenes there are."""
    generator = derive_generator(seed, "scene", index)
    words = {
        "shape": _choose(shapes, generator),
        "color": _choose(COLORS, generator),
        "position": _choose(POSITIONS, generator),
        "size": _choose(SIZES, generator),
        "background": _choose(BACKGROUNDS, generator),
    }
    caption = _choose(CAPTIONS, generator).format(**words).replace("a orange", "an orange")
    jitter = JITTER * (2 * torch.rand(3, generator=generator) - 1)
    tint = TINT * (2 * torch.rand(2, 3, generator=generator) - 1)
    cell = torch.tensor(POSITIONS[words["position"]])
    return Scene(
        **words,
        caption=caption,
        center=tuple((SIDE / 2 + SPACING * cell + jitter[:2]).tolist()),
        radius=SIZES[words["size"]] + jitter[2].item() / 2,
        rgb=tuple((torch.tensor(COLORS[words["color"]]) + tint[0]).tolist()),
        background_rgb=tuple((torch.tensor(BACKGROUNDS[words["background"]]) + tint[1]).tolist()),
    )


def sample_scenes(count: int, seed: int, shapes: Sequence[str] = BASE_SHAPES) -> list[Scene]:
    return [sample_scene(index, seed, shapes) for index in range(count)]


def draw_scene(scene: Scene) -> Tensor:
    """Returns uint8 (3, SIDE, SIDE)."""
    coverage = shape_coverage(scene.shape, scene.center, scene.radius)
    background, color = (
        torch.tensor(rgb).reshape(3, 1, 1) for rgb in (scene.background_rgb, scene.rgb)
    )
    return torch.lerp(background, color, coverage).round().clamp(0, 255).to(torch.uint8)


def shape_coverage(shape: str, center: tuple[float, float], radius: float) -> Tensor:
    """Share of each pixel that the shape covers: float32 (SIDE, SIDE) in [0, 1].

    center: x, y; center and radius in pixels.
    """
    canvas = Image.new("L", (SIDE * OVERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    x, y = (OVERSAMPLING * coordinate for coordinate in center)
    radius *= OVERSAMPLING
    if shape in _POLYGONS:
        draw.polygon([(x + radius * i, y + radius * j) for i, j in _POLYGONS[shape]], fill=255)
    else:
        outer, inner = _DISCS[shape]
        draw.circle((x, y), outer * radius, fill=255)
        if inner:
            draw.circle((x, y), inner * radius, fill=0)
    return torch.from_numpy(np.array(canvas.reduce(OVERSAMPLING))).float() / 255


def _choose(names: Sequence[str], generator: Generator) -> str:
    return list(names)[int(torch.randint(len(names), (), generator=generator))]


def caption_vocabulary() -> list[str]:
    """Every word in the captions of scenes with BASE_SHAPES, sorted."""
    words = " ".join((*CAPTIONS, "an", *BASE_SHAPES, *COLORS, *POSITIONS, *SIZES, *BACKGROUNDS))
    return sorted(set(re.sub(r"\{\w+\}", " ", words).replace(",", " , ").split()))
