"""The charts of a report: the audit, the losses, and where the regularizer acts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_robust.core import RadiusSchedule, Weighting

from .figures import Curve, curves_svg
from .runs import Run, noise_level

_VALIDATION, _TOTAL = "validation/", "validation/loss"
_POINTS = 120  # of a curve: more are not visible, and each costs bytes in the page
_BINS = 40  # of the audit's scores
_LOWEST, _HIGHEST = 0.01, 160.0  # s = sigma / alpha at the ends of the linear DDPM schedule


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    svg: str


def audit_charts(runs: Sequence[Run]) -> list[Chart]:
    """For each audited run, a histogram of the scores of its training samples."""
    charts = []
    for number, run in enumerate(runs):
        scores = torch.tensor([row["score"] for row in run.audit if _positive(row.get("score"))])
        if len(scores) < 2 or scores.min() == scores.max():
            continue
        logs = scores.log10()
        edges = torch.linspace(logs.min(), logs.max(), _BINS + 1)
        counts = torch.histc(logs, _BINS, edges[0], edges[-1])
        centers = 10 ** ((edges[1:] + edges[:-1]) / 2)
        flagged = sum(bool(row.get("flagged")) for row in run.audit)
        kept = [row["score"] for row in run.audit if not row.get("flagged")]
        svg = curves_svg(
            [Curve(run.name, centers.tolist(), counts.tolist(), number)],
            xlabel="score: mean squared error when the auditor denoises the sample",
            description=f"Histogram of the audit's scores of the training samples of {run.name}",
            log_x=True,
            mark=(max(kept), "noisy above") if kept else None,
        )
        note = (
            f"Training samples by how badly the auditor reproduces them; {flagged:,} of "
            f"{len(run.audit):,} count as noisy. audit.jsonl names them."
        )
        charts.append(Chart("Audit", note, svg))
    return charts


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """The parts of the loss over the steps."""
    charts = []
    for key, title, note in (
        ("denoising", "Denoising loss", "The regression part of the loss. Running mean."),
        (
            "penalty",
            "Penalty",
            "The regularizer's part of the loss, times its weight. Compare only runs with the same "
            "weighting. Running mean.",
        ),
    ):
        curves = [Curve(r.name, *_smooth(r.log, key), i) for i, r in enumerate(runs)]
        curves = [curve for curve in curves if len(curve.x) > 1]
        if curves:
            description = f"{title} over the training steps of {_names(curves)}"
            svg = curves_svg(curves, xlabel="step", description=description, log_y=True)
            charts.append(Chart(title, note, svg))
    return charts


def validation_charts(runs: Sequence[Run]) -> list[Chart]:
    """Small charts: the total, then each bin of times, in the order of the times."""
    keys = {key for run in runs for row in run.log for key in row if key.startswith(_VALIDATION)}
    charts = []
    for key in sorted(keys, key=_first_time):
        curves = [Curve(r.name, *_points(r.log, key), i) for i, r in enumerate(runs)]
        curves = [curve for curve in curves if len(curve.x) > 1]
        if curves:
            times = key.removeprefix(_VALIDATION).replace("-", "\N{EN DASH}")
            title = "all times" if key == _TOTAL else times
            description = f"Validation loss, {title}, over the training steps of {_names(curves)}"
            svg = curves_svg(curves, xlabel="step", description=description, size=(2.5, 2.1))
            charts.append(Chart(title, "", svg))
    return charts


def _first_time(key: str) -> int:
    number = re.search(r"\d+", key)
    return int(number[0]) if number else -1


def _points(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows whose value is positive and finite."""
    points = [(row.get("step"), row.get(key)) for row in log]
    points = [(x, y) for x, y in points if x is not None and _positive(y)]
    return [x for x, _ in points], [y for _, y in points]


def _smooth(log: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and running means of the positive and finite values, at most _POINTS of each."""
    points = list(zip(*_points(log, key), strict=True))
    window = -(-len(points) // _POINTS)
    chunks = [points[i : i + window] for i in range(0, len(points), window or 1)]
    steps = [chunk[len(chunk) // 2][0] for chunk in chunks]
    # The mean over three neighbouring chunks is smooth enough to compare curves.
    windows = [[y for c in chunks[max(0, i - 1) : i + 2] for _, y in c] for i in range(len(chunks))]
    return steps, [sum(values) / len(values) for values in windows]


def _positive(y: object) -> bool:
    return isinstance(y, int | float) and math.isfinite(y) and y > 0


def schedule_charts(runs: Sequence[Run]) -> list[Chart]:
    """Radius and gate of the regularizer over the noise level; none for runs without it."""
    regularized = [(i, run) for i, run in enumerate(runs) if run.regularized]
    radii = [_radius_curve(run, i) for i, run in regularized if "rho" in run.config]
    gates = [_gate_curve(run, i) for i, run in regularized if "weighting" in run.config]
    latent = any(run.latent for run in runs)
    levels = [] if latent else sorted({noise_level(run.config) or 0 for run in runs} - {0})
    unit = "in units of latents" if latent else "images span -1 to 1"
    mark = (levels[0], f"contamination, {levels[0]:g}") if len(levels) == 1 else None
    charts = []
    for title, note, curves in (
        ("Radius", "Largest perturbation of the noise, in units of the noise; the mean.", radii),
        ("Gate", "How much of the regularizer's weight applies: 1 all of it, 0 nothing.", gates),
    ):
        if curves:
            svg = curves_svg(
                curves,
                xlabel=f"noise level, sigma / alpha ({unit})",
                description=f"{title} over the noise level for {_names(curves)}",
                log_x=True,
                mark=mark,
            )
            charts.append(Chart(title, note, svg))
    return charts


def _noise_levels(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """=>  s = sigma / alpha, alpha, sigma, each (200,). alpha + sigma = 1 in flow matching, else
    alpha^2 + sigma^2 = 1."""
    s = torch.logspace(math.log10(_LOWEST), math.log10(_HIGHEST), 200)
    flow = "flow" in (run.config.get("parameterization"), run.metrics.get("parameterization"))
    alpha = 1 / (1 + s) if flow else (1 + s.square()).rsqrt()
    return s, alpha, s * alpha


def _radius_curve(run: Run, colour: int) -> Curve:
    s, _, sigma = _noise_levels(run)
    default = RadiusSchedule()
    bias = (
        run.config.get("bias_min", default.bias_min) + run.config.get("bias_max", default.bias_max)
    ) / 2
    radius = RadiusSchedule(run.config["rho"], run.config.get("radius_scale", 1.0), bias, bias)
    return Curve(run.name, s.tolist(), radius(sigma).tolist(), colour)


def _gate_curve(run: Run, colour: int) -> Curve:
    """The mean over channels, if each channel has a band."""
    s, alpha, sigma = _noise_levels(run)
    band = run.config.get("band")
    if not (_positive(band) or isinstance(band, list)):
        band = Weighting().band  # only the preset `band` reads it
    gate = Weighting(run.config["weighting"], band=band).mean_gate(alpha[:, None], sigma[:, None])
    return Curve(run.name, s.tolist(), gate.tolist(), colour)


def _names(curves: Sequence[Curve]) -> str:
    return ", ".join(curve.name for curve in curves)
