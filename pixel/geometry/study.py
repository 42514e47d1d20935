"""What is compared: rows of a name, settings and seeds, for each toy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .task import GeometryConfig
from .toys import TOYS

# The band lies a little above the noise; the weight grows with the dimension (RESULTS.md).
AS_IN_THE_PAPER = {"attack": "gradient", "penalty_fraction": 0.125, "penalty_every": 1}
BY_TOY: dict[str, dict[str, Any]] = {name: {} for name in TOYS}
BY_TOY["pca"] = {"weight": 3.0, "band": 0.5}


@dataclass(frozen=True)
class Row:
    """toys: where it is run; seeds: on the plane, elsewhere the first of them."""

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

# Shown in the figures beside training set and truth: the paper's four.
SHOWN = ("DDPM", "invariance", "random", "adversarial")


def rows_of(toy: str) -> list[Row]:
    return [row for row in ROWS if toy in row.toys]


def seeds_of(row: Row, toy: str, wanted: list[int] | None) -> list[int]:
    """wanted: from the command line, for all rows alike."""
    if wanted is not None:
        return wanted
    return list(row.seeds if toy == "plane" else row.seeds[:1])


def settings_of(toy: str, row: Row, **given: Any) -> dict[str, Any]:
    """given: settings from the command line, which win."""
    return {"data": toy, **AS_IN_THE_PAPER, **BY_TOY[toy], **row.settings, **given}


def folder_of(root: Path, toy: str, row: Row, seed: int, steps: int) -> Path:
    slug = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    return root / toy / f"{slug}-{steps}-steps-seed{seed}"


def config_of(settings: dict[str, Any], seed: int, out: Path) -> GeometryConfig:
    return GeometryConfig(**settings, seed=seed, out=out, resume="auto", offline=True)
