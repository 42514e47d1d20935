"""Images stored as one array: scikit-learn's digits, and IDX files (MNIST, Fashion-MNIST).

The digits are part of scikit-learn and need no download, so the demo and the tests use them.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_robust.errors import InputError


class ArraySource:
    """Gray images in memory: (N, h, w), uint8 or float32 in [0, 1]. labels: (N,) or None."""

    ignored = 0

    def __init__(self, images: Tensor, labels: Tensor | None, name: str, limit: int | None):
        self.images = images[:limit]
        self.labels = None if labels is None else labels[:limit]
        self.dtype = images.dtype
        self.names = [f"{name}:{index}" for index in range(len(self.images))]

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return image.expand(channels, -1, -1), zlib.crc32(image.numpy().tobytes())


def digits(limit: int | None = None) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits: 8 x 8 pixels, 17 gray levels, labels 0..9."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float() / 16
    return ArraySource(images, torch.from_numpy(data.target).long(), "digits", limit)


def fashion_mnist(folder: Path, limit: int | None = None) -> ArraySource:
    """The training images of Fashion-MNIST or MNIST from the IDX files in `folder`, plain or .gz.

    Raises InputError for a file that is missing, damaged or of another dataset.
    """
    images = read_idx(_find_file(folder, "train-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_find_file(folder, "train-labels-idx1-ubyte"), dimensions=1).long()
    if len(images) != len(labels):
        raise InputError(
            f"{folder} has {len(images)} images but {len(labels)} labels; download both files again"
        )
    return ArraySource(images, labels, "train", limit)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes. Returns uint8 with `dimensions` dimensions. Raises InputError.

    Format: the bytes 0, 0, 8 and the number of dimensions; each dimension as a big-endian uint32;
    the data.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; download the file again") from error
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path} is not an IDX file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int)
    if len(data) - start != shape.prod() or shape.prod() == 0:
        raise InputError(
            f"{path} announces {'x'.join(map(str, shape))} bytes but holds {len(data) - start}; "
            "download the file again"
        )
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8).reshape(shape.tolist())


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"no {name} or {name}.gz in {folder}; copy the IDX file there")
