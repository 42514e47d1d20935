"""Pictures that are made for tests."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def rng(seed=0):
    return np.random.default_rng(seed)


def texture(side=128, channels=3, seed=0, smooth=0.8):
    """A picture with detail, but flat parts too."""
    base = rng(seed).normal(size=(side, side, channels))
    rough = ndimage.gaussian_filter(base, (smooth, smooth, 0))
    coarse = ndimage.gaussian_filter(base, (8, 8, 0))
    picture = 128 + 90 * rough / rough.std() * (coarse[..., :1] > 0) / 3 + 400 * coarse
    return np.clip(picture, 0, 255).round().astype(np.uint8)


def as_jpeg(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return Image.open(file)
