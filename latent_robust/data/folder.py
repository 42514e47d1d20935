"""Pictures in a folder and its subfolders."""

from __future__ import annotations

import os
import zlib
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from latent_robust.errors import InputError

from .decode import BadPicture, decode_picture

# Claims to be a picture. What Pillow does not decode here is named in the quarantine.
# fmt: off
EXTENSIONS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".avif", ".heic", ".jxl",
})
# fmt: on


class FolderSource:
    """Sorted by path; names are paths relative to the folder. Links to folders are not followed."""

    dtype = torch.uint8
    labels = None

    def __init__(self, folder: Path, limit: int | None = None):
        files = _files(folder)
        names = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
        self.folder = folder
        self.ignored = len(files) - len(names)
        if not names:
            raise InputError(
                f"no pictures in {folder} ({self.ignored} other files); pictures end in "
                + ", ".join(sorted(EXTENSIONS))
            )
        self.names = list(islice(sorted(names), limit))

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        name = self.names[index]
        path = self.folder / name
        if path.exists() and not path.is_file():
            raise BadPicture("not a regular file", name)  # reading a pipe would wait for ever
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadPicture(f"cannot be read: {error.strerror}", name) from error
        return decode_picture(data, name, channels), zlib.crc32(data)


def _files(folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        # os.walk would pass over a folder that it cannot read.
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    return [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
    ]
