"""Does an image show the colour and the shape that its caption asks for? Judged by rule.

An image is explained as background + one shape of one colour: every shape is laid over it at
every place and several sizes, and the best fit wins. Least squares over the whole image hardly
notice noise, and the templates are slightly soft, as decoded images are.
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
NOTHING = ""  # the name of what is seen where no shape explains the image
BORDER = 2  # pixels at the edge that show background
MIN_SHARE = 0.05  # of the foreground's energy that the best fit must explain
CHUNK = 64  # images at a time: the scores of one take 0.1 MB


def match_scenes(images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares in [0, 1] of the images that show their scene's "color", "shape", and "both".

    images: (N, 3, SIDE, SIDE), or of another size, about [-1, 1]; scenes: N.
    """
    if images.shape[-1] != SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="area")
    return {name: hits.double().mean().item() for name, hits in scene_hits(images, scenes).items()}


def scene_hits(images: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """As match_scenes, image by image: (N,), bool."""
    shapes, colors = see(images)
    shape = torch.tensor([seen == scene.shape for seen, scene in zip(shapes, scenes, strict=True)])
    color = torch.tensor([seen == scene.color for seen, scene in zip(colors, scenes, strict=True)])
    return {"color": color, "shape": shape, "both": color & shape}


def see(images: Tensor) -> tuple[list[str], list[str]]:
    """images: (N, 3, SIDE, SIDE), about [-1, 1]  =>  N shapes and N colours, or NOTHING."""
    shapes, colors = [], []
    for chunk in images.split(CHUNK):
        found, rgb, share = _best_fit(chunk)
        names = [SHAPES[index] for index in found.tolist()]
        palette = torch.tensor(list(COLORS.values())) / 127.5 - 1
        nearest = torch.cdist(rgb, palette).argmin(1).tolist()
        clear = (share > MIN_SHARE).tolist()
        shapes += [name if ok else NOTHING for name, ok in zip(names, clear, strict=True)]
        colors += [list(COLORS)[i] if ok else NOTHING for i, ok in zip(nearest, clear, strict=True)]
    return shapes, colors


def _best_fit(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """=>  shape's index (B,), its colour (B, 3), the share of the energy it explains (B,)."""
    edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    background = images[..., edge].median(-1).values  # (B, 3)
    foreground = images.flatten(2) - background[..., None]  # (B, 3, S * S)

    templates, norms = _templates()
    overlap = foreground @ templates.T  # (B, 3, T)
    explained = overlap.square().sum(1)  # with the best colour for each template
    best, index = explained.max(1)
    rgb = overlap.gather(2, index[:, None, None].expand(-1, 3, 1))[..., 0] / norms[index, None]
    share = best / foreground.square().sum((1, 2)).clamp(min=1e-6)
    return index % len(SHAPES), rgb + background, share


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Every shape (fastest), size and place: (T, S * S) of length 1, and their lengths before."""
    smallest, *_, largest = sorted(SIZES.values())
    radii = torch.linspace(smallest - 1, largest + 1, 7).tolist()
    middle = (SIDE / 2, SIDE / 2)
    sharp = torch.stack([shape_coverage(shape, middle, r) for r in radii for shape in SHAPES])
    soft = gaussian_blur(sharp, [5, 5], [0.6, 0.6])
    reach = range(-ceil(SPACING + JITTER), ceil(SPACING + JITTER) + 1)
    moved = [soft.roll((y, x), (-2, -1)) for y in reach for x in reach]
    templates = torch.cat(moved).flatten(1)
    norms = templates.norm(dim=1)
    return templates / norms[:, None], norms
