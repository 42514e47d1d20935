#!/usr/bin/env python
"""Measure what `latent-robust audit DATA` finds, on clean sets that are made dirty here.

    python scripts/audit_rates.py digits=digits cifar=parquet:cifar10-test.parquet \\
        fashion=fashion-mnist:DIR emoji=DIR photographs=crops:DIR
    python scripts/audit_rates.py --render      # only rewrite docs/results/audit-rates.md

Each set is NAME=DATA. `crops:DIR` cuts squares of 256 pixels out of the large pictures of a folder,
after these were reduced to 768 pixels; squares without contrast are skipped. Digits are enlarged to
32 pixels. Of each set --count pictures are used. Each kind of dirt is applied to all of them, so
that the area under the ROC curve compares each dirty picture with each clean one; marks and copies
depend on how many pictures have them, and are made on a tenth, on half and on nine tenths.

A set that is measured already is not measured again. Results: results/audit-rates.json.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from results_io import RESULTS, render, table_line

from latent_robust.audit.judge import area
from latent_robust.audit.pictures.checks import CHECKS
from latent_robust.audit.pictures.measures import Picture, gray
from latent_robust.audit.pictures.repeats import (
    find_mark,
    groups,
    perceptual_hash,
    shows_mark,
    slopes,
    thumbnail,
)
from latent_robust.audit.pictures.scan import Settings, measure, to_picture
from latent_robust.core import derive_generator
from latent_robust.data import parse_contamination
from latent_robust.data.contamination.corruption import CorruptionContext
from latent_robust.data.decode import BadImage, opened
from latent_robust.data.sources.folder import list_files
from latent_robust.data.stored import list_stored
from latent_robust.subset import evenly_spaced

NAME = "audit-rates"
CROP, REDUCED, CONTRAST, CROPS = 256, 768, 20.0, 4  # of photographs; CROPS of each at most
THRESHOLDS = {check.key: check for check in CHECKS}
# Kind of dirt => the check that should find it.
CONTAMINATIONS = {
    "noise .05": ("noise", "gaussian:fraction=1,sigma=0.05"),
    "noise .1": ("noise", "gaussian:fraction=1,sigma=0.1"),
    "noise .2": ("noise", "gaussian:fraction=1,sigma=0.2"),
    "blur .5": ("blur", "blur:fraction=1,sigma=0.5"),
    "blur 1": ("blur", "blur:fraction=1,sigma=1"),
    "blur 2": ("blur", "blur:fraction=1,sigma=2"),
    "missing block": ("block", "blocks:fraction=1,size=0.25"),
}
WATERMARK = "watermark:fraction=1,text=SAMPLE"
SHARES = (0.1, 0.5, 0.9)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=DATA")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    file = options.results / f"{NAME}.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for given in [] if options.render else options.sets:
        name, _, spec = given.partition("=")
        if results.get(name, {}).get("count") == options.count:
            continue
        results[name] = measure_set(name, pictures_of(spec, options.count))
        results[name]["count"] = options.count
        file.write_text(json.dumps(results, indent=1) + "\n")
    if options.results == RESULTS:
        render(NAME, markdown(results))
    return 0


# ------------------------------------------------------------------ pictures


def pictures_of(spec: str, count: int) -> list[Picture]:
    if spec.startswith("crops:"):
        return crops(Path(spec.removeprefix("crops:")), count)
    listed = list_stored(spec)
    pictures = []
    for index in evenly_spaced(len(listed.keys), count):
        with opened(listed.read(listed.keys[index])) as image:
            if min(image.size) < 16:
                image = image.resize((32, 32), Image.Resampling.BICUBIC)
            pictures.append(to_picture(image))
    return pictures


def crops(folder: Path, count: int) -> list[Picture]:
    squares: list[Picture] = []
    for name in sorted(list_files(folder)):
        try:
            with opened((folder / name).read_bytes()) as image:
                picture = image.convert("RGB")
        except (BadImage, OSError):
            continue
        scale = REDUCED / min(picture.size)
        if scale > 0.9:
            continue
        size = round(picture.width * scale), round(picture.height * scale)
        whole = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
        places = [
            whole[top : top + CROP, left : left + CROP]
            for top in range(0, whole.shape[0] - CROP + 1, CROP)
            for left in range(0, whole.shape[1] - CROP + 1, CROP)
        ]
        full = [square for square in places if gray(square)[::16, ::16].std() > CONTRAST]
        squares += [full[i] for i in evenly_spaced(len(full), CROPS)]
    return [squares[i] for i in evenly_spaced(len(squares), count)]


def contaminated(
    pictures: Sequence[Picture], spec: str, *, one_place: bool = False
) -> list[Picture]:
    """With a contamination of the project; in all pictures as in the first if `one_place`."""
    (corruption,) = parse_contamination(spec)
    height, width, channels = pictures[0].shape
    context = CorruptionContext(max(height, width), channels, offline=True)
    corruption = corruption.prepare(context, lambda tag: derive_generator(0, "rates", tag))
    dirty = []
    for index, picture in enumerate(pictures):
        sample = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        where = 0 if one_place else index
        changed, _ = corruption.apply(sample, derive_generator(0, "rates", where), where)
        values = changed.clamp(0, 1).mul(255).round().byte()
        dirty.append(values.permute(1, 2, 0).numpy())
    return dirty


def as_image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def of_image(image: Image.Image) -> Picture:
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def recompressed(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    as_image(picture).save(file, "JPEG", quality=quality)
    return of_image(Image.open(file))


def resized(picture: Picture, factor: float) -> Picture:
    image = as_image(picture)
    size = round(image.width * factor), round(image.height * factor)
    return of_image(image.resize(size, Image.Resampling.BICUBIC))


def enlarged(picture: Picture) -> Picture:
    return resized(resized(picture, 0.5), 2)


# ------------------------------------------------------------------ rates


def measure_set(name: str, pictures: list[Picture]) -> dict:
    print(f"{name}: {len(pictures)} pictures of {pictures[0].shape[1]} pixels", flush=True)
    settings = Settings()
    start = time.process_time()
    clean = [measure(picture, settings) for picture in pictures]
    seconds = time.process_time() - start
    result: dict = {
        "pixels": pictures[0].shape[1],
        "pictures_per_second": round(len(pictures) / seconds),
        "false": {
            key: round(share_found(key, clean), 4)
            for key in ("noise", "jpeg", "blur", "enlarged", "block", "bars", "clipped")
        },
        "kinds": {},
    }

    def judge(kind: str, key: str, dirty: Sequence[Picture]) -> None:
        rows = [measure(picture, settings) for picture in dirty]
        result["kinds"][kind] = rates(key, rows, clean)
        print(f"  {kind}: {result['kinds'][kind]}", flush=True)

    for kind, (key, spec) in CONTAMINATIONS.items():
        judge(kind, key, contaminated(pictures, spec))
    for quality in (15, 40, 75):
        judge(f"JPEG {quality}", "jpeg", [recompressed(p, quality) for p in pictures])
    reduced = [resized(recompressed(p, 40), 0.75) for p in pictures]
    judge("JPEG 40, then reduced", "jpeg", reduced)
    judge("enlarged twice", "enlarged", [enlarged(p) for p in pictures])
    result["kinds"].update(marks(pictures))
    result["kinds"].update(copies(pictures))
    return result


def values_of(key: str, rows: Sequence[dict]) -> torch.Tensor:
    """Higher for dirtier; what was not measured counts as clean."""
    sign = 1.0 if THRESHOLDS[key].above else -1.0
    lowest = -1e6
    return torch.tensor([lowest if row[key] is None else sign * row[key] for row in rows])


def share_found(key: str, rows: Sequence[dict]) -> float:
    check = THRESHOLDS[key]
    return float(np.mean([row[key] is not None and check.finds(row[key]) for row in rows]))


def rates(key: str, dirty: Sequence[dict], clean: Sequence[dict]) -> dict:
    return {
        "check": key,
        "area": round(area(values_of(key, dirty), values_of(key, clean)), 4),
        "found": round(share_found(key, dirty), 4),
    }


def marks(pictures: list[Picture]) -> dict:
    found = {}
    all_marked = contaminated(pictures, WATERMARK, one_place=True)
    for share in (0.0, *SHARES):
        has = chosen(len(pictures), share)
        mixed = [m if own else p for m, p, own in zip(all_marked, pictures, has, strict=True)]
        mark, _ = find_mark(map(slopes, mixed))
        entry: dict = {"check": "mark", "area": None, "found": 0.0, "false": 0.0}
        if mark is not None:
            scores = np.array([mark.score(slopes(picture)) for picture in mixed], np.float32)
            if 0 < share < 1:
                values = torch.from_numpy(scores)
                entry["area"] = round(area(values[has], values[~has]), 4)
            if shows_mark(scores):
                over = scores > THRESHOLDS["mark"].threshold
                entry["found"] = round(float(over[has].mean()), 4) if has.any() else 0.0
                entry["false"] = round(float(over[~has].mean()), 4)
        found[f"watermark in one place, on {share:.0%}"] = entry
        print(f"  watermark on {share:.0%}: {entry}", flush=True)
    return found


def copies(pictures: list[Picture]) -> dict:
    """A tenth of the pictures is there twice: as it is, recompressed, reduced."""
    some = [pictures[i] for i in evenly_spaced(len(pictures), max(1, len(pictures) // 10))]
    own = groups_of(pictures)[1]
    changes: dict[str, Callable[[Picture], Picture]] = {
        "copies": lambda picture: picture,
        "copies, JPEG 60": lambda picture: recompressed(picture, 60),
        "copies, reduced": lambda picture: resized(picture, 0.75),
    }
    found = {}
    for kind, change in changes.items():
        _, near = groups_of([*pictures, *map(change, some)])
        hits = near[len(pictures) :] < len(pictures)
        false = float((own != np.arange(len(pictures))).mean())
        found[kind] = {
            "check": "near_duplicate",
            "area": None,
            "found": round(float(hits.mean()), 4),
            "false": round(false, 4),
        }
        print(f"  {kind}: {found[kind]}", flush=True)
    return found


def groups_of(pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
    values = [gray(picture) for picture in pictures]
    hashes = np.array([perceptual_hash(one) for one in values], np.uint64)
    return groups([p.tobytes() for p in pictures], hashes, np.stack([thumbnail(v) for v in values]))


def chosen(count: int, share: float) -> np.ndarray:
    return torch.rand(count, generator=derive_generator(0, "share")).numpy() < share


# ------------------------------------------------------------------ the page


def markdown(results: dict) -> str:
    if not results:
        return ""
    names = list(results)
    titles = [f"{name}, {results[name]['pixels']} px" for name in names]
    lines = [table_line(["dirt", *titles]), "|---|" + "---|" * len(names)]
    for kind in results[names[0]]["kinds"]:
        cells = [_cell(results[name]["kinds"].get(kind)) for name in names]
        lines.append(table_line([kind, *cells]))
    lines += ["", table_line(["false alarms", *titles]), "|---|" + "---|" * len(names)]
    for key in results[names[0]]["false"]:
        cells = [f"{100 * results[name]['false'][key]:.1f} %" for name in names]
        lines.append(table_line([THRESHOLDS[key].title, *cells]))
    lines.append(
        table_line(
            [
                "pictures per second and core",
                *(f"{results[n]['pictures_per_second']}" for n in names),
            ]
        )
    )
    return "\n".join(lines)


def _cell(entry: dict | None) -> str:
    if entry is None:
        return ""
    area = "" if entry["area"] is None else f"{entry['area']:.3f}, "
    false = f", {100 * entry['false']:.0f} % false" if entry.get("false") else ""
    return f"{area}{100 * entry['found']:.0f} % found{false}"


if __name__ == "__main__":
    sys.exit(main())
