"""Decode the bytes of one image file, or say why they cannot be used.

Every source decodes here, so that formats, size limits and colour conversion are the same for all.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as v2

# Pillow's own limit: a quarter GiB of RGB. A larger image is usually a decompression bomb: 100
# megapixels of one colour fit in a PNG file of 12 kB.
MAX_PIXELS = 89_478_485

# Fewer formats than Pillow can open: its EPS reader, for example, starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# The scan cache stores which decoder accepted an image. Raise the number with every change that
# refuses more images or changes the size of an image.
DECODER = f"Pillow {PIL.__version__}, 1"

# Python's warning filters are global to the process, and images are decoded in threads.
_WARNINGS_LOCK = threading.Lock()


class BadImage(Exception):
    """An image that cannot be used. `reason` says why and is written to the quarantine.

    The reason is part of an image dataset's fingerprint: with another wording, a run on data with
    bad images can no longer be resumed.
    """

    def __init__(self, reason: str, name: str = ""):
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


def decode_image(data: bytes, name: str, channels: int) -> torch.Tensor:
    """Decode one image file. Returns uint8 (C, H, W).

    data: the bytes of the complete file; name: used in the error message; channels: 1 (gray) or 3
    (RGB). The EXIF orientation is applied, transparency is composited on white, CMYK and palettes
    are converted, and an animation gives its first frame. Raises BadImage.
    """
    with opened(data, name) as image:
        return v2.pil_to_tensor(upright(image, channels))


@contextmanager
def opened(data: bytes, name: str = "") -> Iterator[Image.Image]:
    """An image file, decoded but not yet converted. What is wrong with it is a BadImage, also in
    the block. data, name: as for `decode_image`."""
    if not data:
        raise BadImage("0 bytes", name)
    try:
        with _open(data) as image:
            _check(image)
            image.load()
            yield image
    except BadImage as bad:
        raise BadImage(bad.reason, name) from bad.__cause__
    except Exception as error:  # malformed files make Pillow raise almost any type
        reason = f"cannot be decoded: {type(error).__name__}: {error}"
        raise BadImage(reason, name) from error


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The image by its EXIF orientation, on white, gray or RGB."""
    return _convert(ImageOps.exif_transpose(image), channels)


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"too large, a decompression bomb? {error}") from error
    except Image.UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise BadImage(f"not an image ({formats}), or damaged at its beginning") from error


def _check(image: Image.Image) -> None:
    """Refuse an image by its header, before any pixel is decoded. Raises BadImage."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"too large, a decompression bomb? {width}x{height} is more than {MAX_PIXELS} pixels"
        )
    # Pillow converts these modes by clipping at 255, which turns most pixels white (or black).
    if image.mode == "F" or image.mode.startswith("I"):
        raise BadImage(
            f"more than 8 bits a channel (mode {image.mode}); rescale its values to 0..255 and "
            "save it as an 8-bit PNG"
        )


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # Transparent pixels have colours too, which dropping the alpha channel would reveal.
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")
