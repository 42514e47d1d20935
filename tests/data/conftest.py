import gzip
import hashlib
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(size=(12, 10), channels=3, seed=0) -> Image.Image:
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.fixture(scope="session")
def encode():
    """(image, format, **options) -> bytes."""
    return _encode


@pytest.fixture(scope="session")
def noise():
    """(size=(width, height), channels, seed) -> an image whose pixels all differ."""
    return _noise


@pytest.fixture(scope="session")
def bomb() -> bytes:
    """100 megapixels of black in a few kB."""
    return _encode(Image.new("1", (10_000, 10_000)))


@pytest.fixture
def zoo(tmp_path, bomb) -> Path:
    """20 files with an image extension, 6 of them bad, and 2 other files."""
    folder = tmp_path / "zoo"
    (folder / "sub").mkdir(parents=True)
    files = {
        "bomb.png": bomb,
        "deep.png": _encode(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
        "empty.png": b"",
        "phone.heic": b"\0\0\0\x18ftypheic",
        "text.png": b"this is not an image",
        "truncated.jpg": _encode(_noise((64, 64)), "JPEG")[:-400],
        "cmyk.jpg": _encode(_noise().convert("CMYK"), "JPEG"),
        "dot.png": _encode(Image.new("RGB", (1, 1), (10, 20, 30))),
        "rgba.png": _encode(_noise(channels=4)),
        "sub/UPPER.PNG": _encode(_noise(channels=1)),
        "notes.txt": b"notes",
        "sub/metadata.jsonl": b"{}",
    }
    files |= {f"sub/{i}.png": _encode(_noise(seed=i)) for i in range(10)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def tree_hash():
    """(folder) -> one hash of all names and contents."""

    def digest(folder: Path) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        parts = [(str(path), path.read_bytes(), path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    return digest


@pytest.fixture
def idx(tmp_path):
    """(images (N, h, w), labels (N,), zipped) -> a folder of IDX files."""

    def write(images: np.ndarray, labels: np.ndarray, zipped: bool = False) -> Path:
        folder = tmp_path / f"idx-{zipped}"
        folder.mkdir()
        for name, array in (
            ("train-images-idx3-ubyte", images),
            ("train-labels-idx1-ubyte", labels),
        ):
            shape = struct.pack(f">{array.ndim}I", *array.shape)
            data = bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
        return folder

    return write
