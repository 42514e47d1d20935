"""Measure every picture of a data set on all cores; an interrupted scan goes on where it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tqdm import tqdm

from latent_robust.data.decode import BadImage, opened, upright

from . import measures
from .jpeg import quality_of_pixels, quality_of_tables
from .measures import Picture
from .repeats import Mark, find_mark, perceptual_hash, slopes, thumbnail
from .row_file import RowFile

# Raise it when a change of the code measures the same picture differently.
VERSION = 1
MOST_PIXELS = 512  # a side; of larger pictures the middle is measured
CHUNK = 16  # pictures that a process is given at once

Row = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """What a scan depends on besides the pictures. size: that they are trained at, in pixels, None
    if unknown; mark: what to look for."""

    size: int | None = None
    mark: Mark | None = None

    @property
    def key(self) -> str:
        """Rows of another key are not used again."""
        return f"{VERSION} {self.size}"

    @cached_property
    def mark_key(self) -> str:
        """A score of another mark is not used again."""
        pattern = b"" if self.mark is None else self.mark.pattern.tobytes()
        return blake2b(pattern, digest_size=8).hexdigest()


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

    read: key => bytes; picklable. file: where rows are kept, so that an interrupted scan goes on,
    and the next one measures only new pictures; None for nowhere. workers: processes, by default
    one for each core.
    """
    with RowFile(file, settings.key, settings.mark_key) as rows:
        job = (read, settings, rows.known)
        results = each(_measure_task, keys, job, workers, "measuring pictures")
        for index, (digest, row) in enumerate(results):
            yield {"index": index, "name": names[index], **rows.merged(digest, row)}


def find_mark_of(
    read: Callable[[Any], bytes], keys: Sequence[Any], workers: int | None = None
) -> tuple[Mark | None, str]:
    """As `find_mark`, for stored pictures. Those that cannot be read are left out."""
    found = each(_slopes_task, keys, (read, Settings(), {}), workers, "looking for marks")
    return find_mark(slope for slope in found if slope is not None)


def each(
    task: Callable[[Any], Result],
    keys: Sequence[Any],
    job: tuple[Callable[[Any], bytes], Settings, dict[str, tuple[int, str]]],
    workers: int | None,
    label: str,
) -> Iterator[Result]:
    """task(key) of each key, in order, in several processes that know the job."""
    workers = workers or len(os.sched_getaffinity(0))
    progress = partial(tqdm, desc=label, total=len(keys), unit="picture", delay=1, leave=False)
    if workers == 1 or len(keys) <= CHUNK:
        _begin(*job)
        yield from progress(map(task, keys))
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with context.Pool(workers, _begin_worker, job) as pool:
        yield from progress(pool.imap(task, keys, CHUNK))


# What this process measures: how to read a key, the settings, and known rows by digest.
_job: tuple[Callable[[Any], bytes], Settings, dict[str, tuple[int, str]]]


def _begin(*job: Any) -> None:
    global _job
    _job = job


def _begin_worker(*job: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    _begin(*job)


def _measure_task(key: Any) -> tuple[str, Row]:
    """=>  the digest of the file, and its row; of one that is known only what is missing."""
    read, settings, known = _job
    try:
        data = read(key)
    except BadImage as bad:
        return "", {"bad": bad.reason}
    digest = blake2b(data, digest_size=16).hexdigest()
    _, mark_key = known.get(digest, (0, None))
    try:
        if mark_key is None:
            return digest, measure_file(data, settings)
        if mark_key == settings.mark_key or settings.mark is None:
            return digest, {}
        with opened(data) as image:
            return digest, {"mark": settings.mark.score(slopes(to_picture(image)))}
    except BadImage as bad:
        return digest, {"bad": bad.reason}
    except Exception as error:  # one odd picture must not end the audit of a million
        return digest, {"bad": f"cannot be measured: {type(error).__name__}: {error}"}


def _slopes_task(key: Any) -> NDArray[np.float32] | None:
    read, _, _ = _job
    try:
        with opened(read(key)) as image:
            return slopes(to_picture(image))
    except BadImage:
        return None  # the scan reports it


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
        found["mark"] = settings.mark.score(slopes(picture))
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
