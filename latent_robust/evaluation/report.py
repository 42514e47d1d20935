"""One HTML file that shows what came of one or several runs. It needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latent_robust.files import write_atomically

from .charts import charts, validation_charts
from .comparison import (
    caution,
    heading,
    introduction,
    table_note,
)
from .grids import (
    images,
    in_pairs,
    prompts,
    stages,
)
from .runs import Run, read_runs
from .tables import (
    Row,
    configuration_table,
    cost_table,
    metrics_table,
)


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
    shown = images(found)
    large = in_pairs(shown)
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
        # In pairs: the data in one row, what was drawn below it.
        images=sorted(shown, key=lambda p: p.series is not None) if large else shown,
        large=large,
        prompts=prompts(found),
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
        stages=[(i, run, stages(run)) for i, run in enumerate(found) if run.stages],
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
    # `read_runs` has named several by their objectives, if these tell them apart.
    alone = len(runs) == 1 and row.series is not None
    name = runs[0].objective if alone else row.name
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


def _groups(columns) -> list[tuple[str, int]]:
    """(heading, how many columns it spans)."""
    names = [column.group for column in columns]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]
