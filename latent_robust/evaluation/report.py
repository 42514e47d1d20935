"""One HTML file about one or several runs. It needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latent_robust.files import write_atomically
from latent_robust.pages import page_template

from .charts import audit_charts, schedule_charts, training_charts, validation_charts
from .comparison import arrows_note, caution, heading, introduction, table_note
from .grids import are_large, comparisons, data_and_samples, stages
from .lora_files import lora_files
from .runs import Run, read_runs
from .tables import (
    Column,
    Row,
    configuration_table,
    header_spans,
    metrics_table,
    select_columns,
)
from .verdict import verdict

# What a terminal has no room for: columns that repeat what another one says, and parts of a figure.
_NOT_ON_TERMINAL = {"KD", "KID", "precision", "recall"}
_FRONT_ONLY = {"match", "CLIP", "cost"}


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write the report on these run directories to `out`, and return it.

    What a run does not have (yet) is left out. InputError for a directory that is not a run, and
    for a place that cannot be written to.
    """
    out = Path(out)
    loaded = read_runs(runs)
    columns, rows = metrics_table(loaded)
    front_columns, front_rows = select_columns(columns, rows, lambda column: column.front)
    grids = data_and_samples(loaded)
    large = are_large(grids)
    page = page_template("latent_robust.evaluation", "report.html.j2").render(
        verdict=verdict(loaded),
        title=title or _title(loaded),
        introduction=introduction(loaded),
        facts=_facts(loaded),
        runs=loaded,
        comparisons=comparisons(loaded),
        # If the grids are large, the data come in one row and the runs below it.
        grids=sorted(grids, key=lambda grid: grid.series is not None) if large else grids,
        large=large,
        prompted=any(run.prompts for run in loaded),
        front_columns=front_columns,
        front_rows=front_rows,
        columns=columns,
        header_spans=header_spans(columns),
        rows=rows,
        heading=heading(loaded),
        caution=caution(loaded),
        arrows_note=arrows_note(front_columns),
        table_note=table_note(loaded),
        lora_files=lora_files(loaded),
        audits=audit_charts(loaded),
        losses=training_charts(loaded),
        validation=validation_charts(loaded),
        schedules=schedule_charts(loaded),
        stages=[(i, run, grids) for i, run in enumerate(loaded) if (grids := stages(run))],
        configuration=configuration_table(loaded),
    )
    write_atomically(out, page)
    return out


def metrics_text(runs: Sequence[Path]) -> str:
    """The verdict, the evidence for it, and the table of metrics, for a terminal."""
    loaded = read_runs(runs)
    result = verdict(loaded)
    columns, rows = metrics_table(loaded)
    parts = [f"{result.sentence}\n{result.evidence}".rstrip()]
    if rows:
        front = select_columns(columns, rows, lambda column: column.front)
        others = select_columns(columns, rows, _adds_something)
        lines = [["", *(_column_name(column) for column in front[0] + others[0])]]
        for first, second in zip(front[1], others[1], strict=True):
            cells = first.cells + second.cells
            lines.append([_row_name(first, loaded), *(cell.text for cell in cells)])
        parts.append(_aligned(lines))
    return "\n\n".join(filter(None, [*parts, caution(loaded)]))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(w) if n else text.ljust(w)
            for n, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _adds_something(column: Column) -> bool:
    repeats = column.title in _NOT_ON_TERMINAL or column.span in _FRONT_ONLY
    return not (column.front or repeats)


def _column_name(column: Column) -> str:
    span = "" if column.span in ("images", "cost") else f" ({column.span})"
    return f"{column.title}{span} {column.arrow}".rstrip()


def _row_name(row: Row, runs: Sequence[Run]) -> str:
    # `read_runs` names several runs by their objectives if these differ.
    alone = len(runs) == 1 and row.series is not None
    name = runs[0].objective if alone else row.name
    return f"{name} ({row.note})" if row.note else name


def _title(runs: Sequence[Run]) -> str:
    data = sorted({str(run.config["data"]) for run in runs if "data" in run.config})
    what = "One model" if len(runs) == 1 else f"{len(runs)} models"
    return f"{what}, trained on {', '.join(data)}" if data else what


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Settings that all runs share, and how many images were left out."""
    shared = {key: values[0] for key, values, differ in configuration_table(runs) if not differ}
    keys = ("model", "contamination", "parameterization", "steps", "batch_size", "seed")
    facts = [(key.replace("_", " "), shared[key]) for key in keys if key in shared]
    for run in runs:
        if "data_audit" in run.metrics:
            facts.append(("audit of the data", run.metrics["data_audit"]))
        if run.quarantined:
            files = "file" if run.quarantined == 1 else "files"
            whose = f" by {run.name}" if len(runs) > 1 else ""
            facts.append(
                (f"left out{whose}", f"{run.quarantined} bad {files}, see quarantine.jsonl")
            )
    return facts
