"""From the bytes of one file to pixels, or a reason why not."""

from __future__ import annotations

import threading
import warnings
from io import BytesIO

import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as v2

# Pillow's own limit, a quarter GiB of RGB. Larger files are usually bombs: 100 megapixels of one
# colour fit in 12 kB of PNG.
MAX_PIXELS = 89_478_485

# Not all that Pillow can open: its EPS reader, for one, starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What an image that was accepted was accepted by. The number is to be raised with every change
# that refuses more, or that changes a size.
DECODER = f"Pillow {PIL.__version__}, 1"

# Python's warning filters belong to the process; images are decoded in threads.
_OPENING = threading.Lock()


class BadImage(Exception):
    """An image that cannot be used. `reason` says why, for the quarantine."""

    def __init__(self, reason: str, name: str = ""):
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


def decode_image(data: bytes, name: str, channels: int) -> torch.Tensor:
    """data: a whole file; name: for the message; channels: 1 (gray) or 3.  =>  uint8 (C, H, W).

    Turned upright as EXIF says; transparency is composited on white, CMYK and palettes are
    converted; of an animation the first frame. Raises BadImage.
    """
    if not data:
        raise BadImage("0 bytes", name)
    try:
        with _open(data) as image:
            _check(image)
            image.load()
            return v2.pil_to_tensor(_convert(ImageOps.exif_transpose(image), channels))
    except BadImage as bad:
        raise BadImage(bad.reason, name) from bad.__cause__
    except Exception as error:  # Pillow raises nearly every type there is on malformed files
        reason = f"cannot be decoded: {type(error).__name__}: {error}"
        raise BadImage(reason, name) from error


def _open(data: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"too large, a decompression bomb? {error}") from error
    except Image.UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise BadImage(f"not an image ({formats}), or damaged at its beginning") from error


def _check(image: Image.Image) -> None:
    """Before any pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"too large, a decompression bomb? {width}x{height} is more than {MAX_PIXELS} pixels"
        )
    # Pillow would convert these by clipping at 255, which turns most of them white (or black).
    if image.mode == "F" or image.mode.startswith("I"):
        raise BadImage(
            f"more than 8 bits a channel (mode {image.mode}); rescale its values to 0..255 and "
            "save it as an 8-bit PNG"
        )


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # Without this, the colours hidden under transparent pixels would come to light.
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")
