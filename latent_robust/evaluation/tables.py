"""The tables of a report: what was measured of each run, and how the configurations differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .features import headline_space, label, metric_name
from .runs import Run, compared_with, wall_seconds


class Better(StrEnum):
    """Which values of a column are better. REFERENCE: those near the value of the images that the
    run is compared with."""

    LESS = "\N{DOWNWARDS ARROW}"
    MORE = "\N{UPWARDS ARROW}"
    REFERENCE = "\N{ALMOST EQUAL TO}"


@dataclass(frozen=True)
class Column:
    """span: the header that it shares with its neighbours. key, std: where a result has the value
    and its standard deviation, as paths of names. better: None if neither direction is better.
    target: the value to be near to, where it is the same for all runs. front: shown first; the
    other columns are details."""

    span: str
    title: str
    key: tuple[str, ...]
    better: Better | None = None
    std: tuple[str, ...] | None = None
    target: float | None = None
    front: bool = False
    needs_reference: bool = False
    text: Callable[[float | None], str] = lambda value: number(value)

    @property
    def name(self) -> str:
        """The title in full, where there is room for it."""
        names = {
            "FD": "Fréchet distance",
            "noise": "residual noise",
            "both": "captions right",
            "score": "CLIP score",
        }
        return names.get(self.title, self.title)

    @property
    def space(self) -> str:
        """The feature space of a distance, in words; "" for other columns."""
        return self.span if self.key[-1] == "frechet" else ""

    @property
    def arrow(self) -> str:
        """`better` as a sign, with the target if there is one; "" if neither is better."""
        target = "" if self.target is None else f" {number(self.target)}"
        return "" if self.better is None else f"{self.better}{target}"


@dataclass(frozen=True)
class Row:
    """series: the run's place in the palette; None for a yardstick such as the training set. note:
    what it was compared with, where the rows differ in that."""

    name: str
    cells: list[Cell]
    series: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    std: str = ""
    best: bool = False


def metrics_table(runs: Sequence[Run]) -> tuple[list[Column], list[Row]]:
    """Columns and rows; both empty if no run has been measured.

    The best value of a column is marked if it is the only one with these digits, and if no run was
    compared with training images.
    """
    measured = [
        (i, run, {**run.result, "cost": _cost(run, runs)})
        for i, run in enumerate(runs)
        if run.result
    ]
    kinds = compared_with(runs)
    notes = (
        {"clean": "against clean images", "training": "against its training images"}
        if len(kinds) > 1
        else {"clean": "", "training": ""}
    )
    floors = _floors(runs)
    everything = [result for *_, result in measured] + [result for _, result in floors]
    columns = [
        column
        for column in _columns(everything)
        if any(_value_at(result, column.key) is not None for result in everything)
    ]
    if "training" in kinds:  # nearer to dirty images is not better
        columns = [replace(c, better=None) if c.needs_reference else c for c in columns]
    rivals = [result for *_, result in measured] if "training" not in kinds else []
    best = {column: _best(column, rivals) for column in columns}
    rows = [
        Row(run.name, [_cell(c, result, best[c]) for c in columns], i, notes[run.compared_with])
        for i, run, result in measured
    ]
    rows += [
        Row(name, [_cell(c, result, None) for c in columns], note=notes["clean"])
        for name, result in floors
    ]
    return columns, rows


def select_columns(
    columns: Sequence[Column], rows: Sequence[Row], keep: Callable[[Column], bool]
) -> tuple[list[Column], list[Row]]:
    """A table with only the columns that `keep` accepts."""
    places = [i for i, column in enumerate(columns) if keep(column)]
    kept = [replace(row, cells=[row.cells[i] for i in places]) for row in rows]
    return [columns[i] for i in places], kept


def header_spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """(header, how many columns it spans)."""
    names = [column.span for column in columns]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def _columns(results: Sequence[dict]) -> list[Column]:
    """All that these results may have, the headline's feature space first."""
    less, more, reference = Better.LESS, Better.MORE, Better.REFERENCE
    spaces = list(dict.fromkeys(k for r in results for k, v in r.items() if "frechet" in _dict(v)))
    headline = headline_space(spaces)
    columns = []
    for name in sorted(spaces, key=lambda name: name != headline):
        span = "Inception" if name == "inception" else label(name)
        fid, kid = (metric_name(name, d).split(" (")[0] for d in ("Fréchet", "kernel"))
        front = name == headline
        columns += [
            Column(span, fid, (name, "frechet"), less, front=front, needs_reference=True),
            Column(span, "MIND", (name, "mind"), less, needs_reference=True),
            Column(span, kid, (name, "kid"), less, (name, "kid_std"), needs_reference=True),
            Column(span, "precision", (name, "precision"), more, needs_reference=True),
            Column(span, "recall", (name, "recall"), more, needs_reference=True),
        ]
    noise = {r["residual_noise_reference"] for r in results if "residual_noise_reference" in r}
    target = noise.pop() if len(noise) == 1 else None
    match = _numbers_in(results, "match")
    return [
        *columns,
        Column(
            "images", "noise", ("residual_noise",), reference,
            target=target, front=True, needs_reference=True,
        ),
        Column("images", "detail", ("detail",), target=1.0, needs_reference=True),
        Column("images", "nearest", ("nearest_distance",)),
        Column("images", "likeness", ("training_similarity", "mean")),
        *(
            Column("match", name, ("match", name), more, front=name == match[-1])
            for name in match
        ),
        Column("CLIP", "score", ("clip", "clip_score"), more, front=True),
        Column("CLIP", "cosine", ("clip", "clip_cosine"), more),
        Column("cost", "wall time", ("cost", "seconds"), front=True, text=duration),
        *(
            Column("cost", name.replace("_", " "), ("cost", name))
            for name in _numbers_in(results, "cost")
            if name != "seconds"
        ),
    ]  # fmt: skip


def _cost(run: Run, runs: Sequence[Run]) -> dict:
    """Wall time of training in seconds, and what metrics.json has under `cost`."""
    seconds = wall_seconds(run, runs)
    return {**({} if seconds is None else {"seconds": seconds}), **_dict(run.metrics.get("cost"))}


def _numbers_in(results: Sequence[dict], part: str) -> list[str]:
    """Names of the numbers in this part of the results."""
    entries = [item for result in results for item in _dict(result.get(part)).items()]
    return list(dict.fromkeys(name for name, value in entries if isinstance(value, int | float)))


def _floors(runs: Sequence[Run]) -> list[tuple[str, dict]]:
    """Each yardstick once. Where runs disagree about it, one for each run, with the run's name."""
    by_name: dict[str, dict[str, dict]] = {}
    for run in runs:
        for name, result in (run.metrics.get("floors") or {}).items():
            by_name.setdefault(name, {})[run.name] = result
    floors = []
    for name, by_run in by_name.items():
        if all(result == next(iter(by_run.values())) for result in by_run.values()):
            floors.append((name, next(iter(by_run.values()))))
        else:
            floors += [(f"{name} of {run}", result) for run, result in by_run.items()]
    return floors


def _shortfall(column: Column, result: dict) -> float | None:
    """How far the value is from the best imaginable one, up to a constant. None without a value."""
    value = _value_at(result, column.key)
    if value is None or not math.isfinite(value):
        return None
    match column.better:
        case Better.LESS:
            return value
        case Better.MORE:
            return -value
        case Better.REFERENCE:
            return abs(value - result.get("residual_noise_reference", 0.0))
    return None


def _best(column: Column, results: Sequence[dict]) -> str | None:
    """The best value as it is shown; None if no other run can compete, or if two show the same."""
    shortfalls = [(_shortfall(column, result), result) for result in results]
    values = [(s, _value_at(result, column.key)) for s, result in shortfalls if s is not None]
    if len(values) < 2:
        return None
    text = column.text(min(values)[1])
    return text if sum(column.text(value) == text for _, value in values) == 1 else None


def _cell(column: Column, result: dict, best: str | None) -> Cell:
    text = column.text(_value_at(result, column.key))
    std = _value_at(result, column.std) if column.std else None
    return Cell(text, f"± {number(std)}" if std else "", text == best)


def _value_at(result: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        result = _dict(result).get(key)
    return result


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def number(value: float | None) -> str:
    """Three significant digits, at most four after the point; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not finite"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """In the largest unit that leaves at least 1: 24 s, 1.8 min, 2.3 h."""
    if seconds is None:
        return "\N{EN DASH}"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


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
