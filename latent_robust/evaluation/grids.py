"""The grids of images in a report: the data, what each run drew, and how it came there."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .runs import Run

_STAGES = 6  # of a run: images in a row that still fit a phone
_LARGE = 320  # pixels of a grid that more than two or three in a row would shrink
_WIDEST, _WIDEST_STAGE = 1600, 800  # pixels: more cannot be seen, and each costs bytes


@dataclass(frozen=True)
class Grid:
    """uri: the file's bytes. series: the run's place in the palette, None for data. columns: how
    many prompts it was drawn from, one a column; 0 for none."""

    title: str
    note: str
    alt: str
    uri: str
    width: int
    height: int
    series: int | None = None
    columns: int = 0


def images(runs: Sequence[Run]) -> list[Grid]:
    """Training data, what each run drew, the truth if it is known. Equal grids appear once."""

    def data(stem: str, runs: Sequence[Run], title: str, note: str) -> list[Grid]:
        files = {run.images[stem].read_bytes(): run for run in reversed(runs) if stem in run.images}
        return [
            _image(run.images[stem], title if len(files) == 1 else f"{title} of {run.name}", note)
            for run in reversed(files.values())
        ]

    known = [run for run in runs if run.compared_with == "clean"]
    whose = "" if len(known) == len(runs) else f"of {', '.join(run.name for run in known)}"
    drawn = [
        _image(path, run.name, note, i) for i, run in enumerate(runs) for path, note in _latest(run)
    ]
    return [
        *data("training", runs, "Training data", "what was shown in training"),
        *drawn,
        *data("clean", known, "Clean truth", whose or "never shown in training"),
    ]


def in_pairs(images: Sequence[Grid]) -> bool:
    """Whether these grids are so large that no more than two belong in a row."""
    return max((image.width for image in images), default=0) > _LARGE


def _latest(run: Run) -> list[tuple[Path, str]]:
    """What a finished run drew, or one under way has drawn last, and a note; at most one."""
    if "final" in run.images:
        return [(run.images["final"], _drawn_by(run))]
    return [(path, f"{_drawn_by(run)}, at step {step:,}") for step, path in run.stages[-1:]]


def prompts(runs: Sequence[Run]) -> list[tuple[str, tuple[str, ...]]]:
    """(whose, prompts of the stages), equal ones once."""
    names: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.prompts:
            names.setdefault(run.prompts, []).append(run.name)
    return [(", ".join(whose), prompts) for prompts, whose in names.items()]


def _drawn_by(run: Run) -> str:
    seconds = run.metrics.get("seconds")
    facts = [run.objective] if run.name != run.objective else []
    facts += [f"{run.config['steps']:,} steps"] if "steps" in run.config else []
    facts += [f"{seconds / 60:.1f} min"] if seconds else []
    return ", ".join(facts)


def _image(
    path: Path,
    title: str,
    note: str,
    series: int | None = None,
    prompts: Sequence[str] = (),
    widest: int = _WIDEST,
) -> Grid:
    """A grid wider than `widest` is shrunk to it."""
    from PIL import Image

    content, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        if image.width > widest:
            image = image.convert("RGB")
            image.thumbnail((widest, image.height))
            shrunk, kind = io.BytesIO(), "jpeg"
            image.save(shrunk, kind, quality=92, subsampling=0)
            content = shrunk.getvalue()
        width, height = image.size
    uri = f"data:image/{kind};base64," + base64.b64encode(content).decode()
    alt = f"Grid of images: {title}, {note}"
    if prompts:
        alt += f"; a column each for: {', '.join(prompts)}"
    return Grid(title, note, alt, uri, width, height, series, len(prompts))


def stages(run: Run) -> list[Grid]:
    """What it drew on the way, evenly spaced over the steps, first and last included."""
    last, by = len(run.stages) - 1, f"drawn by {run.name}"
    places = {round(i * last / (_STAGES - 1)) for i in range(_STAGES)}
    return [
        _image(path, f"step {step:,}", by, prompts=run.prompts, widest=_WIDEST_STAGE)
        for step, path in (run.stages[i] for i in sorted(places))
    ]
