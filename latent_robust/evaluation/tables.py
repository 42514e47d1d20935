"""The tables of a report: metrics with the best marked, and the configurations side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .features import label, metric_name
from .runs import Run, compared_with


@dataclass(frozen=True)
class Column:
    """group: the heading that it shares; key: where a result has it, in a path of names;
    cost: of a value in a result, least is best; None where there is no better."""

    group: str
    title: str
    key: tuple[str, ...]
    cost: Callable[[float, dict], float] | None = None
    spread: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Row:
    """series: the run's place in the palette; None for a yardstick, which is not a run. note: what
    it was measured against, where that is not the same for all."""

    name: str
    cells: list[Cell]
    series: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""
    best: bool = False


def metrics_table(runs: Sequence[Run]) -> tuple[list[Column], list[Row]]:
    """Columns and rows; both empty when no run has been evaluated.

    The best of a column is marked only where nothing was measured against training images.
    """
    measured = [(i, run, run.result) for i, run in enumerate(runs) if run.result]
    kinds = compared_with(runs)
    notes = (
        {"clean": "against clean images", "training": "against its training images"}
        if len(kinds) > 1
        else {"clean": "", "training": ""}
    )
    floors = _floors(runs)
    everything = [result for *_, result in measured] + [result for _, result in floors]
    columns = [
        c for c in _columns(everything) if any(_look(r, c.key) is not None for r in everything)
    ]
    rivals = [result for *_, result in measured] if "training" not in kinds else []
    best = {c: _best(c, rivals) for c in columns}
    rows = [
        Row(run.name, [_cell(c, result, best[c]) for c in columns], i, notes[run.compared_with])
        for i, run, result in measured
    ]
    rows += [
        Row(name, [_cell(c, result, None) for c in columns], note=notes["clean"])
        for name, result in floors
    ]
    return columns, rows


def _columns(results: Sequence[dict]) -> list[Column]:
    extractors = {k: None for r in results for k, v in r.items() if "frechet" in _dict(v)}
    columns = []
    for name in extractors:
        group = "Inception" if name == "inception" else label(name)
        fid, kid = (metric_name(name, d).split(" (")[0] for d in ("Fréchet", "kernel"))
        columns += [
            Column(group, fid, (name, "frechet"), _least),
            Column(group, kid, (name, "kid"), _least, (name, "kid_std")),
            Column(group, "precision", (name, "precision"), _most),
            Column(group, "recall", (name, "recall"), _most),
        ]
    return [
        *columns,
        Column("images", "noise", ("residual_noise",), _like_the_reference),
        Column("images", "nearest", ("nearest_distance",)),
        Column("images", "likeness", ("training_similarity", "mean")),
        *(Column("match", name, ("match", name), _most) for name in _names(results, "match")),
        Column("CLIP", "score", ("clip", "clip_score"), _most),
        Column("CLIP", "cosine", ("clip", "clip_cosine"), _most),
    ]


def _names(results: Sequence[dict], part: str) -> list[str]:
    """Of the numbers in this part of the results."""
    entries = [item for result in results for item in _dict(result.get(part)).items()]
    return list(dict.fromkeys(name for name, value in entries if isinstance(value, int | float)))


def _floors(runs: Sequence[Run]) -> list[tuple[str, dict]]:
    """Each yardstick once, and with the run's name where runs disagree about it."""
    seen: dict[str, dict[str, dict]] = {}
    for run in runs:
        for name, result in (run.metrics.get("floors") or {}).items():
            seen.setdefault(name, {})[run.name] = result
    floors = []
    for name, by_run in seen.items():
        if all(result == next(iter(by_run.values())) for result in by_run.values()):
            floors.append((name, next(iter(by_run.values()))))
        else:
            floors += [(f"{name} of {run}", result) for run, result in by_run.items()]
    return floors


def _least(value: float, result: dict) -> float:
    return value


def _most(value: float, result: dict) -> float:
    return -value


def _like_the_reference(value: float, result: dict) -> float:
    return abs(value - result.get("residual_noise_reference", 0.0))


def _best(column: Column, results: Sequence[dict]) -> float | None:
    """The least cost; None where there is nothing to choose from."""
    if column.cost is None or len(results) < 2:
        return None
    values = [(_look(result, column.key), result) for result in results]
    costs = [column.cost(v, r) for v, r in values if v is not None and math.isfinite(v)]
    return min(costs, default=None)


def _cell(column: Column, result: dict, best: float | None) -> Cell:
    value = _look(result, column.key)
    spread = _look(result, column.spread) if column.spread else None
    return Cell(
        number(value),
        f"± {number(spread)}" if spread else "",
        best is not None and value is not None and column.cost(value, result) == best,
    )


def _look(result: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        result = _dict(result).get(key)
    return result


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def number(value: float | None) -> str:
    """Three significant digits, as one would write them by hand."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not finite"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}".replace("-", "\N{MINUS SIGN}")


def cost_table(runs: Sequence[Run]) -> tuple[list[str], list[Row]]:
    """What metrics.json says under `cost`: names and a row for each run; both may be empty."""
    names = _names([run.metrics for run in runs], "cost")
    rows = [
        Row(run.name, [Cell(number(_look(run.metrics, ("cost", name)))) for name in names], i)
        for i, run in enumerate(runs)
        if run.metrics.get("cost")
    ]
    return [name.replace("_", " ") for name in names], rows


def configuration_table(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """(key, its value in each run, whether the runs differ), in the order of the files."""
    keys = {key: None for run in runs for key in run.config}
    rows = [(key, [_written(run.config, key) for run in runs]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


def _written(config: dict, key: str) -> str:
    value = config.get(key)
    if key not in config or value is None:
        return "\N{EN DASH}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
