"""Images in a folder and its subfolders.

The images are sorted by path, so that the order is the same on every machine.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from posixpath import splitext

import torch
from torch import Tensor

from latent_robust.data.decode import BadImage, decode_image
from latent_robust.errors import InputError

# A file with one of these extensions counts as an image. Formats that `decode.py` does not accept
# (.avif, .heic, .jxl) are quarantined by name instead of being ignored.
# fmt: off
EXTENSIONS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".avif", ".heic", ".jxl",
})
# fmt: on


class FolderSource:
    """Images sorted by path; names are paths relative to `folder`. Links to folders are skipped."""

    dtype = torch.uint8
    labels = None

    def __init__(self, folder: Path, limit: int | None = None):
        files = list_files(folder)
        names = image_names(files, folder)
        self.folder = folder
        self.ignored = len(files) - len(names)
        self.names = names[:limit]

    def load(self, index: int, channels: int) -> tuple[Tensor, int]:
        name = self.names[index]
        data = read_file(self.folder, name)
        return decode_image(data, name, channels), zlib.crc32(data)


def read_file(folder: Path, name: str) -> bytes:
    """The bytes of one file. name: path relative to `folder`. Raises BadImage."""
    path = folder / name
    if path.exists() and not path.is_file():
        raise BadImage("not a regular file", name)  # reading a pipe would block forever
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}", name) from error


def image_names(files: Sequence[str], folder: Path) -> list[str]:
    """The `files` with an image extension, sorted. Raises InputError if there are none."""
    names = sorted(name for name in files if splitext(name)[1].lower() in EXTENSIONS)
    if not names:
        raise InputError(
            f"no images in {folder} ({len(files)} other files); image files end in "
            + ", ".join(sorted(EXTENSIONS))
        )
    return names


def list_files(folder: Path) -> list[str]:
    """All files in a folder and its subfolders, as paths relative to it.

    Run directories below the folder are skipped, because `--out` may be inside the data. Raises
    InputError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        # Without `onerror`, os.walk silently skips a folder that it cannot read.
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    # Plain strings: a Path for each of a million files would take minutes.
    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        inner = Path(parent).relative_to(folder).as_posix()
        if inner != "." and {"config.yaml", "manifest.jsonl"} <= set(names):
            folders.clear()
            continue
        files += names if inner == "." else [f"{inner}/{name}" for name in names]
    return files
