"""Runs grouped by method, and when two methods count as different.

Two methods differ if their distances differ by at least 10 % and, where a method has several seeds,
if the ranges over seeds do not overlap. Over three seeds of the digits study distances have a
relative standard deviation of 1 to 15 %, so a difference of less than 10 % says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from .runs import Run

SMALL = 0.10  # relative difference of distances that counts as none

# Settings in which the runs of one method may differ: where it ran, its seed, and what was chosen
# from the data.
_NOT_METHOD = {
    "seed", "out", "init", "device", "workers", "offline", "cache_dir", "compare_with", "levels",
    "weight", "band", "stop_at",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but their seeds. plain: whether it is plain training."""

    name: str
    runs: tuple[Run, ...]
    plain: bool

    @property
    def full_name(self) -> str:
        return f"{self.name} (plain training)" if self.plain else self.name

    def values(self, *path: str) -> list[float]:
        """Of each run, at this path of its result. Empty if a run lacks it."""
        values = [_value_at(run.result, path) for run in self.runs]
        return [] if None in values else values

    def distance(self, space: str) -> float:
        """Fréchet distance in this feature space, the mean over seeds; > 0, though rounding may
        leave that of equal sets just below 0."""
        return max(mean(self.values(space, "frechet")), 1e-12)


def group_by_method(runs: Sequence[Run]) -> list[Method]:
    """The methods in the order of their first runs, named by their objectives if these differ.

    Runs that agree in all but _NOT_METHOD are one method, unless two of them have the same seed:
    those are a sweep over one of these settings, and each is a method of its own.
    """
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in _NOT_METHOD}
        by_settings.setdefault(str(sorted(settings.items())), []).append(run)
    groups = []
    for alike in by_settings.values():
        seeds = {run.config.get("seed") for run in alike}
        groups += [alike] if len(seeds) == len(alike) else [[run] for run in alike]
    groups.sort(key=lambda group: runs.index(group[0]))
    objectives = [group[0].objective for group in groups]
    return [
        Method(
            group[0].objective
            if objectives.count(group[0].objective) == 1
            else " and ".join(run.name for run in group),
            tuple(group),
            group[0].plain,
        )
        for group in groups
    ]


def ratio(a: Method, b: Method, space: str) -> float:
    """a's distance in units of b's."""
    return a.distance(space) / b.distance(space)


def overlap(a: Method, b: Method, space: str) -> bool:
    """Whether the distances of the two overlap between seeds."""
    low, high = sorted([a.values(space, "frechet"), b.values(space, "frechet")], key=mean)
    return max(low) >= min(high)


def differ(a: Method, b: Method, space: str) -> bool:
    return not overlap(a, b, space) and abs(1 - ratio(a, b, space)) >= SMALL


def feature_spaces(results: Sequence[dict]) -> list[str]:
    """Those in which all of these results have a Fréchet distance, in the order of the first."""
    return [
        name
        for name, part in (results[0].items() if results else ())
        if all(is_space(result.get(name)) for result in [{name: part}, *results])
    ]


def is_space(part: object) -> bool:
    """Whether this part of a result is of a feature space."""
    return isinstance(part, dict) and "frechet" in part


def _value_at(result: dict, path: Sequence[str]) -> float | None:
    value: object = result
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
