"""Measure every picture of a data set on all cores; an interrupted scan goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tqdm import tqdm

from latent_robust.data.decode import BadImage, opened, upright
from latent_robust.files import writing

from . import measures
from .jpeg import quality_of_pixels, quality_of_tables
from .measures import Picture
from .repeats import Mark, perceptual_hash, thumbnail

# Raise it when a change of the code measures the same picture differently.
VERSION = 1
MOST_PIXELS = 512  # a side; of larger pictures the middle is measured
CHUNK = 16  # pictures that a process is given at once

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a scan depends on besides the pictures. size: that they are trained at, in pixels, None
    if unknown; mark: what to look for."""

    size: int | None = None
    mark: Mark | None = None

    def digest(self) -> str:
        pattern = b"" if self.mark is None else self.mark.pattern.tobytes()
        return blake2b(f"{VERSION} {self.size} ".encode() + pattern, digest_size=16).hexdigest()


def scan(
    read: Callable[[Any], bytes],
    keys: Sequence[Any],
    names: Sequence[str],
    settings: Settings,
    *,
    file: Path | None,
    workers: int | None = None,
) -> Iterator[Row]:
    """Yield the row of each picture, in order: what `measure_file` found, with "index" and "name".

    read: key => bytes; picklable. file: where rows are kept, so that an interrupted scan goes on;
    None for nowhere. workers: processes, by default one for each core.
    """
    known = _known_rows(file, settings) if file is not None else {}
    workers = workers or len(os.sched_getaffinity(0))
    todo = range(len(keys))
    tasks = ((index, keys[index], known.get(index, ("", 0))[0]) for index in todo)
    context = multiprocessing.get_context(
        "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    )
    with _Rows(file, settings, known) as rows:
        if workers == 1 or len(keys) <= CHUNK:
            _begin(read, settings)
            yield from _numbered(map(_measure_task, tasks), names, rows)
            return
        with context.Pool(workers, _begin, (read, settings)) as pool:
            yield from _numbered(pool.imap(_measure_task, tasks, CHUNK), names, rows)


def _numbered(found: Iterator[tuple[str, Row | None]], names: Sequence[str], rows: _Rows):
    progress = tqdm(found, "measuring pictures", len(names), unit="picture", delay=1, leave=False)
    for index, (digest, row) in enumerate(progress):
        row = rows.old(index) if row is None else rows.add(index, digest, row)
        yield {"index": index, "name": names[index], **row}


_job: tuple[Callable[[Any], bytes], Settings]  # of this process


def _begin(read: Callable[[Any], bytes], settings: Settings) -> None:
    global _job
    _job = (read, settings)


def _measure_task(task: tuple[int, Any, str]) -> tuple[str, Row | None]:
    """=>  the digest of the file, and its row; None if it is the one that is known."""
    _, key, known = task
    read, settings = _job
    try:
        data = read(key)
    except BadImage as bad:
        return "", {"bad": bad.reason}
    digest = blake2b(data, digest_size=16).hexdigest()
    if digest == known:
        return digest, None
    try:
        return digest, measure_file(data, settings)
    except BadImage as bad:
        return digest, {"bad": bad.reason}


# ------------------------------------------------------------------ one picture


def measure_file(data: bytes, settings: Settings) -> Row:
    """Everything that is measured of one stored picture, as JSON. Raises BadImage."""
    with opened(data) as image:
        facts = _facts_of_file(image, len(data))
        tables = getattr(image, "quantization", None) if image.format == "JPEG" else None
        picture = to_picture(image)
    found = measure(picture, settings)
    if tables:
        saved = quality_of_tables([tables[key] for key in sorted(tables)])
        found["jpeg"] = min(saved, found["jpeg"])  # it may have been saved worse before
    return {**facts, **found}


def to_picture(image: Image.Image) -> Picture:
    """Upright, on white, (H, W, C), as training sees it at full size."""
    channels = 1 if image.mode in ("1", "L", "LA") else 3
    values = np.asarray(upright(image, channels))
    return values[..., None] if values.ndim == 2 else values


def measure(picture: Picture, settings: Settings) -> Row:
    """Everything that is measured of the pixels (H, W, C)."""
    height, width = picture.shape[:2]
    middle = _middle(picture)
    values = measures.gray(middle)
    trained_values = _as_trained(picture, values, settings.size)
    block = measures.missing_block(middle, values)
    low, high = measures.brightness(values)
    power = measures.power_by_band(trained_values / 127.5 - 1)
    found: Row = {
        "width": width,
        "height": height,
        "noise": measures.noise(middle),
        "jpeg": quality_of_pixels(values) or 100.0,
        "blur": measures.edge_width(trained_values),
        "enlarged": measures.lost_detail(power * 127.5**2) if min(height, width) >= 16 else None,
        "block": 0.0 if block is None else block[0],
        "bars": measures.bars(values if middle.shape == picture.shape else measures.gray(picture)),
        "cut": 1 - min(height, width) / max(height, width),
        "clipped": measures.clipped(values),
        "dark": high,
        "bright": low,
        "gray": measures.colourless(middle),
        "power": [float(f"{value:.4g}") for value in power],
        "pixels": blake2b(picture.tobytes(), digest_size=12).hexdigest(),
        "hash": f"{perceptual_hash(trained_values):016x}",
        "thumb": thumbnail(trained_values).tobytes().hex(),
    }
    if settings.size is not None:
        found["small"] = max(0.0, settings.size / min(height, width) - 1)
    if settings.mark is not None:
        found["mark"] = settings.mark.score(picture)
    return {
        key: float(f"{value:.5g}") if isinstance(value, float) else value
        for key, value in found.items()
    }


def _middle(picture: Picture) -> Picture:
    """At most MOST_PIXELS a side, on the grid of JPEG."""
    top, left = (max(0, (n - MOST_PIXELS) // 2) // 8 * 8 for n in picture.shape[:2])
    return picture[top : top + MOST_PIXELS, left : left + MOST_PIXELS]


def _as_trained(
    picture: Picture, values: NDArray[np.float32], size: int | None
) -> NDArray[np.float32]:
    """The brightness as training reduces the picture; `values` where that is no larger."""
    height, width = picture.shape[:2]
    if size is None or min(height, width) <= size:
        return values
    scale = size / min(height, width)
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    small = image.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
    )
    reduced = np.asarray(small)
    return measures.gray(_middle(reduced[..., None] if reduced.ndim == 2 else reduced))


def _facts_of_file(image: Image.Image, size: int) -> Row:
    profile = image.info.get("icc_profile")
    return {
        "format": image.format,
        "bytes": size,
        "profile": profile is not None and not _is_srgb(profile),
        "transparent": image.has_transparency_data and _shows_through(image),
    }


def _shows_through(image: Image.Image) -> bool:
    """Whether a pixel is transparent: many files have an alpha channel that is full everywhere."""
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool(alpha.min() < 250)


def _is_srgb(profile: bytes) -> bool:
    with suppress(ImageCms.PyCMSError, OSError):
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile)))
        return "srgb" in name.lower() or "gray" in name.lower()
    return True  # a profile that cannot be read changes nothing either


# ------------------------------------------------------------------ the file of rows


class _Rows:
    """Appends the rows of a scan to a file, and reads known ones from it."""

    def __init__(self, file: Path | None, settings: Settings, known: dict[int, tuple[str, int]]):
        self._path, self._known, self._settings = file, known, settings
        self._file: Any = None

    def __enter__(self) -> _Rows:
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fresh = not self._known
                self._file = open(self._path, "wb+" if fresh else "rb+")
                if fresh:
                    self._file.write(json.dumps({"scan": self._settings.digest()}).encode() + b"\n")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def old(self, index: int) -> Row:
        self._file.seek(self._known[index][1])
        stored = json.loads(self._file.readline())
        return stored["row"]

    def add(self, index: int, digest: str, row: Row) -> Row:
        if self._path is not None and digest:
            line = json.dumps({"index": index, "digest": digest, "row": row}).encode() + b"\n"
            with writing(self._path):
                self._file.seek(0, os.SEEK_END)
                self._file.write(line)
        return row


def _known_rows(file: Path, settings: Settings) -> dict[int, tuple[str, int]]:
    """Index => digest of the picture, and the place of its row in the file.

    A row that was cut off by a kill is cut off the file. A file of other settings is not used."""
    known: dict[int, tuple[str, int]] = {}
    try:
        with open(file, "rb") as lines:
            if json.loads(lines.readline()) != {"scan": settings.digest()}:
                return {}
            place = lines.tell()
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                stored = json.loads(line)
                known[stored["index"]] = (stored["digest"], place)
                place += len(line)
        os.truncate(file, place)
    except (OSError, ValueError, LookupError):
        return known if known else {}
    return known
