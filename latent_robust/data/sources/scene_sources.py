"""Scenes as sources: captioned pairs of the new shapes, and labelled images of all shapes.

They make the demos run without a download. The pairs show shapes that the demo model was not
trained on, so a LoRA has something to learn.
"""

from __future__ import annotations

import zlib
from io import BytesIO

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale, to_pil_image

from latent_robust.errors import InputError

from .pair_list import PairList
from .scenes import (
    BASE_SHAPES,
    COLORS,
    CONCEPT_SHAPES,
    Scene,
    draw_scene,
    sample_scene,
    sample_scenes,
)

# Seeds that nothing else uses, so that no other scenes are the same.
PAIRS_SEED = 1_000
IMAGES_SEED = 2_000


def list_scenes(limit: int | None, caption_column: str | None) -> PairList:
    """The first `limit` (default 512) pairs with CONCEPT_SHAPES, which the demo model lacks."""
    if caption_column is not None:
        raise InputError(f"scenes have no columns, got {caption_column!r} as the caption column")
    pairs = PairList(_read_scene)
    scenes = sample_scenes(limit or 512, PAIRS_SEED, CONCEPT_SHAPES)
    for index, scene in enumerate(scenes):
        pairs.add(index, f"scenes:{index}", scene.caption)
    return pairs


def _read_scene(index: int) -> bytes:
    """The scene as the bytes of a PNG file, because pairs are read as stored images."""
    file = BytesIO()
    to_pil_image(draw_scene(sample_scene(index, PAIRS_SEED, CONCEPT_SHAPES))).save(file, "PNG")
    return file.getvalue()


class SceneImages:
    """The first `limit` (default 12,000) images with all shapes. Label: shape and colour."""

    dtype = torch.uint8
    ignored = 0

    def __init__(self, limit: int | None):
        shapes, colors = BASE_SHAPES + CONCEPT_SHAPES, list(COLORS)
        self.scenes = sample_scenes(limit or 12_000, IMAGES_SEED, shapes)
        self.names = [f"scenes:{index}" for index in range(len(self.scenes))]
        self.labels = torch.tensor(
            [shapes.index(s.shape) * len(colors) + colors.index(s.color) for s in self.scenes]
        )

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        image = draw_scene(self.scenes[index])
        converted = rgb_to_grayscale(image) if channels == 1 else image
        return converted, zlib.crc32(image.numpy().tobytes())


def scene_named(name: str) -> Scene:
    """The scene of a pair. name: the pair's, e.g. "scenes:12"."""
    return sample_scene(int(name.partition(":")[2]), PAIRS_SEED, CONCEPT_SHAPES)
