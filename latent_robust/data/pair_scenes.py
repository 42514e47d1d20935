"""The built-in pairs: captioned scenes of the shapes that the demo model does not know."""

from __future__ import annotations

from io import BytesIO

from torchvision.transforms.v2.functional import to_pil_image

from latent_robust.errors import InputError

from .pair_list import PairList
from .scenes import CONCEPT_SHAPES, draw_scene, sample_scene, sample_scenes

COUNT = 512
PAIRS_SEED = 1_000  # no other scenes are drawn from it


def list_scenes(limit: int | None, caption_column: str | None) -> PairList:
    """The first `limit` of them, by default COUNT; there is no end to them."""
    if caption_column is not None:
        raise InputError(f"scenes have no columns, got {caption_column!r} as the caption column")
    pairs = PairList(read_scene)
    scenes = sample_scenes(limit or COUNT, PAIRS_SEED, CONCEPT_SHAPES)
    for index, scene in enumerate(scenes):
        pairs.add(index, f"scenes:{index}", scene.caption)
    return pairs


def read_scene(index: int) -> bytes:
    """=>  its picture as a PNG file, for readers of stored pictures."""
    file = BytesIO()
    to_pil_image(draw_scene(sample_scene(index, PAIRS_SEED, CONCEPT_SHAPES))).save(file, "PNG")
    return file.getvalue()
