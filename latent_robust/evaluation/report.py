"""One HTML file that shows what came of one or several runs. It needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomically
from .charts import charts, validation_charts
from .comparison import caution, heading, introduction, table_note
from .runs import Run, read_runs
from .tables import Row, configuration_table, cost_table, metrics_table

_STAGES = 6  # pictures in a row that still fit a phone
_LARGE = 320  # pixels of a grid that four or more in a row would shrink
_WIDEST, _WIDEST_STAGE = 1600, 800  # pixels: more cannot be seen, and each costs bytes


@dataclass(frozen=True)
class Picture:
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


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write the report on these run directories to `out`, and return it.

    What a run does not have (yet) is left out. InputError for a directory that is not a run, and
    for a place that cannot be written to.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    out = Path(out)
    found = read_runs(runs)
    columns, rows = metrics_table(found)
    costs, cost_rows = cost_table(found)
    pictures = _pictures(found)
    large = max((picture.width for picture in pictures), default=0) > _LARGE
    environment = Environment(
        loader=PackageLoader("latent_robust.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title or _title(found),
        introduction=introduction(found),
        facts=_facts(found),
        runs=found,
        # Large ones are shown in pairs: the data in one row, what was drawn below it.
        pictures=sorted(pictures, key=lambda p: p.series is not None) if large else pictures,
        large=large,
        prompts=_prompts(found),
        columns=columns,
        groups=_groups(columns),
        rows=rows,
        heading=heading(found),
        caution=caution(found),
        table_note=table_note(found),
        costs=costs,
        cost_rows=cost_rows,
        charts=charts(found),
        validation=validation_charts(found),
        stages=[(i, run, _stages(run)) for i, run in enumerate(found) if run.stages],
        configuration=configuration_table(found),
    )
    write_atomically(out, page)
    return out


def metrics_text(runs: Sequence[Path]) -> str:
    """The report's table of metrics for a terminal, with what must be known to read it."""
    found = read_runs(runs)
    columns, rows = metrics_table(found)
    shown = [i for i, column in enumerate(columns) if column.title not in ("precision", "recall")]
    lines = [
        ["", *(f"{columns[i].title} ({columns[i].group})" for i in shown)],
        *([_row_name(row, found), *(row.cells[i].text for i in shown)] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = "\n".join(
        "  ".join(
            text.rjust(w) if n else text.ljust(w)
            for n, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return f"{table}\n\n{caution(found)}".rstrip()


def _row_name(row: Row, runs: Sequence[Run]) -> str:
    name = row.name if row.series is None else runs[row.series].objective
    return f"{name} ({row.note})" if row.note else name


def _title(runs: Sequence[Run]) -> str:
    data = sorted({str(run.config["data"]) for run in runs if "data" in run.config})
    what = "One model" if len(runs) == 1 else f"{len(runs)} models"
    return f"{what}, trained on {', '.join(data)}" if data else what


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What all runs have in common, in a line."""
    shared = {key: values[0] for key, values, differ in configuration_table(runs) if not differ}
    keys = ("model", "contamination", "parameterization", "steps", "batch_size", "seed")
    facts = [(key.replace("_", " "), shared[key]) for key in keys if key in shared]
    for run in runs:
        if run.quarantined:
            files = "file" if run.quarantined == 1 else "files"
            whose = f" by {run.name}" if len(runs) > 1 else ""
            facts.append(
                (f"left out{whose}", f"{run.quarantined} bad {files}, see quarantine.jsonl")
            )
    return facts


def _pictures(runs: Sequence[Run]) -> list[Picture]:
    """Training data, what each run drew, the truth if it is known. Equal grids appear once."""

    def data(stem: str, runs: Sequence[Run], title: str, note: str) -> list[Picture]:
        files = {
            run.pictures[stem].read_bytes(): run for run in reversed(runs) if stem in run.pictures
        }
        return [
            _picture(
                run.pictures[stem], title if len(files) == 1 else f"{title} of {run.name}", note
            )
            for run in reversed(files.values())
        ]

    known = [run for run in runs if run.compared_with == "clean"]
    whose = "" if len(known) == len(runs) else f"of {', '.join(run.name for run in known)}"
    drawn = [
        _picture(path, run.name, note, i, run.prompts)
        for i, run in enumerate(runs)
        for path, note in _latest(run)
    ]
    return [
        *data("training", runs, "Training data", "what was shown in training"),
        *drawn,
        *data("clean", known, "Clean truth", whose or "never shown in training"),
    ]


def _latest(run: Run) -> list[tuple[Path, str]]:
    """What a finished run drew, or one under way has drawn last, and a note; at most one."""
    if "final" in run.pictures:
        return [(run.pictures["final"], _drawn_by(run))]
    return [(path, f"{_drawn_by(run)}, at step {step:,}") for step, path in run.stages[-1:]]


def _prompts(runs: Sequence[Run]) -> list[tuple[str, tuple[str, ...]]]:
    """(whose, prompts), equal ones once."""
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


def _picture(
    path: Path,
    title: str,
    note: str,
    series: int | None = None,
    prompts: Sequence[str] = (),
    widest: int = _WIDEST,
) -> Picture:
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
    alt = f"Grid of pictures: {title}, {note}"
    if prompts:
        alt += f"; a column each for: {', '.join(prompts)}"
    return Picture(title, note, alt, uri, width, height, series, len(prompts))


def _stages(run: Run) -> list[Picture]:
    last, by = len(run.stages) - 1, f"drawn by {run.name}"
    places = {round(i * last / (_STAGES - 1)) for i in range(_STAGES)}
    return [
        _picture(path, f"step {step:,}", by, prompts=run.prompts, widest=_WIDEST_STAGE)
        for step, path in (run.stages[i] for i in sorted(places))
    ]


def _groups(columns) -> list[tuple[str, int]]:
    """(heading, how many columns it spans)."""
    names = [column.group for column in columns]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]
