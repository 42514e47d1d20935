"""The rows of the comparison: a name, settings and seeds, for each toy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .task import GeometryConfig
from .toys import TOYS

AS_IN_THE_PAPER = {"attack": "gradient", "penalty_fraction": 0.125, "penalty_every": 1}
# The band lies a little above the noise, and the best weight grows with the dimension.
BY_TOY: dict[str, dict[str, Any]] = {name: {} for name in TOYS}
BY_TOY["pca"] = {"weight": 3.0, "band": 0.5}


@dataclass(frozen=True)
class Row:
    """toys: on which it is run. seeds: all of them on the plane, only the first on other toys."""

    name: str
    settings: dict[str, Any]
    toys: tuple[str, ...] = TOYS
    seeds: tuple[int, ...] = (0,)


ROWS = [
    Row("DDPM on clean data (floor)", {"objective": "ddpm", "clean": True}),
    Row("DDPM", {"objective": "ddpm"}, seeds=(0, 1, 2)),
    Row("invariance", {"objective": "invariance"}),
    Row("random", {"objective": "robust-random"}, seeds=(0, 1, 2)),
    Row("adversarial", {"objective": "robust-adversarial"}, seeds=(0, 1, 2)),
    Row(
        "adversarial, along the displacement",
        {"objective": "robust-adversarial", "attack": "displacement", "penalty_every": 2},
        seeds=(0, 1, 2),
    ),
    Row(
        "adversarial, no band, 0.3",
        {"objective": "robust-adversarial", "weighting": "normalized", "weight": 0.3},
        toys=("plane", "plane-outliers"),
    ),
    Row(
        "invariance, no band, 0.3",
        {"objective": "invariance", "weighting": "normalized", "weight": 0.3},
        toys=("plane",),
    ),
    Row("pseudo-Huber", {"objective": "pseudo-huber"}, toys=("plane-outliers",)),
]

# Rows shown in the figures, next to the training set and the truth: the four of the paper.
SHOWN = ("DDPM", "invariance", "random", "adversarial")


def rows_of(toy: str) -> list[Row]:
    return [row for row in ROWS if toy in row.toys]


def seeds_of(row: Row, toy: str, wanted: list[int] | None) -> list[int]:
    """wanted: seeds from the command line, which apply to every row."""
    if wanted is not None:
        return wanted
    return list(row.seeds if toy == "plane" else row.seeds[:1])


def settings_of(toy: str, row: Row, **given: Any) -> dict[str, Any]:
    """given: settings from the command line, which override the others."""
    return {"data": toy, **AS_IN_THE_PAPER, **BY_TOY[toy], **row.settings, **given}


def folder_of(root: Path, toy: str, row: Row, seed: int, steps: int) -> Path:
    slug = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    return root / toy / f"{slug}-{steps}-steps-seed{seed}"


def config_of(settings: dict[str, Any], seed: int, out: Path) -> GeometryConfig:
    return GeometryConfig(**settings, seed=seed, out=out, resume="auto", offline=True)
