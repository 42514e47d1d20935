"""Check by rule whether an image shows the colour and the shape that its caption names.

An image is modelled as a background plus one shape of one colour. Every shape is fitted at every
place and at several sizes, and the best fit wins. Least squares over the whole image is robust
against noise, and the templates are slightly soft, as decoded images are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from latent_robust.data.sources.scenes import (
    BASE_SHAPES,
    COLORS,
    CONCEPT_SHAPES,
    JITTER,
    SIDE,
    SIZES,
    SPACING,
    Scene,
    shape_coverage,
)

SHAPES = BASE_SHAPES + CONCEPT_SHAPES
NOTHING = ""  # the detected shape and colour if no shape explains the image
BORDER = 2  # pixels at each edge that belong to the background
MIN_SHARE = 0.05  # least share of the foreground's energy that the best fit must explain
CHUNK = 64  # images at a time; the scores of one image take 0.1 MB


def match_scenes(images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """=>  the shares in [0, 1] of the images that show their scene's "color", "shape", and "both".

    images: (N, 3, H, W) in about [-1, 1], resized to SIDE if necessary; scenes: N.
    """
    if images.shape[-1] != SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="area")
    return {name: hits.double().mean().item() for name, hits in scene_hits(images, scenes).items()}


def scene_hits(images: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """As `match_scenes`, for each image: (N,), bool. images: (N, 3, SIDE, SIDE)."""
    shapes, colors = detect_scenes(images)
    shape = torch.tensor([name == scene.shape for name, scene in zip(shapes, scenes, strict=True)])
    color = torch.tensor([name == scene.color for name, scene in zip(colors, scenes, strict=True)])
    return {"color": color, "shape": shape, "both": color & shape}


def detect_scenes(images: Tensor) -> tuple[list[str], list[str]]:
    """images: (N, 3, SIDE, SIDE), in about [-1, 1].  =>  N shapes and N colours, each a name or
    NOTHING."""
    shapes, colors = [], []
    for chunk in images.split(CHUNK):
        fitted, rgb, share = _best_fit(chunk)
        names = [SHAPES[index] for index in fitted.tolist()]
        palette = torch.tensor(list(COLORS.values())) / 127.5 - 1
        nearest = torch.cdist(rgb, palette).argmin(1).tolist()
        clear = (share > MIN_SHARE).tolist()
        shapes += [name if ok else NOTHING for name, ok in zip(names, clear, strict=True)]
        colors += [list(COLORS)[i] if ok else NOTHING for i, ok in zip(nearest, clear, strict=True)]
    return shapes, colors


def _best_fit(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """=>  index of the shape (B,), its colour (B, 3), and the share of the foreground's energy that
    it explains (B,)."""
    edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    background = images[..., edge].median(-1).values  # (B, 3)
    foreground = images.flatten(2) - background[..., None]  # (B, 3, S * S)

    templates, norms = _templates()
    overlap = foreground @ templates.T  # (B, 3, T)
    explained = overlap.square().sum(1)  # by each template in its best colour
    best, index = explained.max(1)
    rgb = overlap.gather(2, index[:, None, None].expand(-1, 3, 1))[..., 0] / norms[index, None]
    share = best / foreground.square().sum((1, 2)).clamp(min=1e-6)
    return index % len(SHAPES), rgb + background, share


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Templates of every shape (fastest index), size and place, (T, S * S), normalized to length 1,
    and their lengths before that, (T,)."""
    smallest, *_, largest = sorted(SIZES.values())
    radii = torch.linspace(smallest - 1, largest + 1, 7).tolist()
    middle = (SIDE / 2, SIDE / 2)
    sharp = torch.stack([shape_coverage(shape, middle, r) for r in radii for shape in SHAPES])
    soft = gaussian_blur(sharp, [5, 5], [0.6, 0.6])
    offsets = range(-ceil(SPACING + JITTER), ceil(SPACING + JITTER) + 1)
    moved = [soft.roll((y, x), (-2, -1)) for y in offsets for x in offsets]
    templates = torch.cat(moved).flatten(1)
    norms = templates.norm(dim=1)
    return templates / norms[:, None], norms
