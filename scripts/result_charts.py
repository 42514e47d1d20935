#!/usr/bin/env python
"""Draw the five charts of RESULTS.md from results/*.json, into docs/results/img.

    python scripts/result_charts.py

No training, a few seconds. Colours are Okabe and Ito's, and every colour has its own marker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, quantiles, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results_io import IMAGES, RESULTS

from latent_robust.files import whole_file

BLUE, ORANGE, GREEN, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#000000", "#999999"
STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (BLACK, "D"))


def main() -> None:
    for draw in (noise, cost, clean, dirt, lora):
        path = IMAGES / f"chart-{draw.__name__}.png"
        save(draw(), path)
        print(path)


# ------------------------------------------------------------------ the charts


def noise() -> Figure:
    """Does it remove noise? Distance over DDPM's on noisy digits and Fashion-MNIST."""
    rows = {
        "DDPM": "DDPM",
        "DDPM, sampler stopped at 0.7": "DDPM, stopped sampler",
        "random": "robust-random",
        "adversarial": "robust-adversarial",
        "audited": "audited",
        "DDPM on clean data (floor)": "DDPM on clean data",
    }
    figure, panels = subplots(2, (8.4, 3.0), sharey=True)
    for axes, name, title in zip(
        panels, ("digits", "fashion-mnist"), ("Digits, 8x8", "Fashion-MNIST, 16x16"), strict=True
    ):
        for space, (color, marker), label in zip(
            ("pixels", name), STYLES, ("pixels", "features"), strict=False
        ):
            unit = mean(distances(name, "DDPM", space))
            for y, row in enumerate(rows):
                values = [value / unit for value in distances(name, row, space)]
                point(axes, mean(values), y, spread(values), color, marker, label if y == 0 else "")
        finish_ratios(
            axes,
            f"{title}, 90 % noisy",
            "distance to clean images over DDPM's",
            1.15,
            rows.values(),
        )
    legend_above(figure, panels[0])
    return figure


def cost() -> Figure:
    """What does it cost? Step time over the plain step's: median and quartiles of the rounds."""
    results = json.loads((RESULTS / "benchmark.json").read_text())
    figure, (axes,) = subplots(1, (7.6, 3.6))
    recipes = ("robust-adversarial", "robust-random", "the paper's recipe")
    for offset, (recipe, (color, marker)) in enumerate(zip(recipes, STYLES, strict=False)):
        for y, by_recipe in enumerate(results.values()):
            ratios = by_recipe[recipe]["ratio"]
            low, _, high = quantiles(ratios, n=4)
            middle = median(ratios)
            error = [[middle - low], [high - middle]]
            height = y + 0.22 * (offset - 1)
            point(axes, middle, height, error, color, marker, recipe if y == 0 else "")
    unit_line(axes)
    axes.set_xlabel("step time over a plain step's (median, quartiles)")
    axes.set_xlim(0.8, 4)
    label_rows(axes, results)
    legend_above(figure, axes)
    return figure


def clean() -> Figure:
    """What happens on clean data, and at little noise? Distances over plain training's."""
    figure, (left, right) = subplots(2, (8.4, 3.3))
    digits = ("digits", "DDPM on clean data (floor)", "digits")
    scenes = ("latent-demo", "plain LoRA on clean data (floor)", "scenes")
    rows = {
        "LoRA: robust-adversarial": (scenes, "robust-adversarial on clean data"),
        "LoRA: audited": (scenes, "audited on clean data"),
        "digits: audited\n(twice the steps)": (digits, "audited on clean data"),
    }
    for y, ((name, floor, features), row) in enumerate(rows.values()):
        seeds = {entry["seed"] for entry in entries(name, row)}
        for space, (color, marker), label in zip(
            ("pixels", features), STYLES, ("pixels", "features"), strict=False
        ):
            ratio = mean(distances(name, row, space)) / mean(distances(name, floor, space, seeds))
            point(left, ratio, y, None, color, marker, label if y == 0 else "")
    unit_line(left)
    left.set_xlim(0.6, 1.2)
    left.set_xlabel("distance over plain training's")
    left.set_title("Clean data", fontsize=10)
    label_rows(left, rows)
    left.legend(loc="lower center", bbox_to_anchor=(0.45, 1.08), ncols=2)

    levels = ("0.05", "0.1", "0.2")
    for share, (color, marker) in zip((30, 60, 90, 100), STYLES, strict=True):
        ratios = [grid_ratio(share, level) for level in levels]
        right.plot(range(3), ratios, f"{marker}-", color=color, label=f"{share} % noisy")
    right.axhline(1, color=GREY, linewidth=1, linestyle="--")
    right.set_xticks(range(3), levels)
    right.set_ylim(0, 1.1)
    right.set_xlabel("noise (share of the range)")
    right.set_ylabel("distance over DDPM's")
    right.set_title("Noisy digits: robust-adversarial, pixels", fontsize=10)
    right.legend(loc="lower left")
    return figure


def dirt() -> Figure:
    """Other dirt than noise? Distance over that of DDPM with as many steps, on digits."""
    rows = {
        "noise on all": "noise on every image",
        "mixed noise levels": "noise of 0 to 0.3",
        "salt and pepper": "salt and pepper",
        "mix": "mix of noise and other dirt",
        "missing blocks": "missing blocks",
        "JPEG": "JPEG",
        "blur": "blur",
        "outliers": "images of another data set",
    }
    methods = {"adversarial": "DDPM", "audited": "DDPM, 5,000 steps"}
    figure, panels = subplots(2, (8.4, 3.3), sharey=True)
    for axes, space, title in zip(
        panels, ("pixels", "digits"), ("Pixels", "Features"), strict=True
    ):
        for (method, baseline), (color, marker), offset in zip(
            methods.items(), STYLES, (-0.12, 0.12), strict=False
        ):
            for y, kind in enumerate(rows):
                plain = entries("dirt", f"{kind}: {baseline}")
                if not plain:  # not run: the audit flags nothing there
                    continue
                seeds = {entry["seed"] for entry in plain}
                values = distances("dirt", f"{kind}: {method}", space, seeds)
                ratio = mean(values) / mean(distances("dirt", f"{kind}: {baseline}", space))
                label = {"adversarial": "robust-adversarial"}.get(method, method)
                point(axes, ratio, y + offset, None, color, marker, label if y == 0 else "")
        finish_ratios(axes, title, "distance over DDPM's with as many steps", 1.4, rows.values())
    legend_above(figure, panels[0])
    return figure


def lora() -> Figure:
    """Does it work for a LoRA? Distance to clean scenes against captions right."""
    rows = {
        "plain LoRA": ("plain LoRA", BLACK, "o", (0, 20), "center"),
        "pseudo-Huber": ("pseudo-Huber", GREY, "s", (-6, -26), "center"),
        "input perturbation": ("input perturbation", GREY, "v", (4, -40), "center"),
        "robust-adversarial": ("robust-adversarial", ORANGE, "^", (8, -12), "left"),
        "robust-random": ("robust-random", ORANGE, "P", (8, 5), "left"),
        "audited": ("audited", BLUE, "D", (8, -12), "left"),
        "audited, 2,000 steps": ("audited, twice the steps", BLUE, "X", (6, 8), "left"),
        "plain LoRA on clean data (floor)": ("plain, on clean data", GREEN, "*", (6, 8), "left"),
    }
    figure, (axes,) = subplots(1, (7.2, 3.6))
    for row, (label, color, marker, shift, align) in rows.items():
        x = distances("latent-demo", row, "pixels")
        y = [100 * entry["match"]["both"] for entry in entries("latent-demo", row)]
        axes.errorbar(
            mean(x), mean(y), stdev(y), stdev(x), color=color, fmt=marker, ms=7, elinewidth=1
        )
        axes.annotate(
            label,
            (mean(x), mean(y)),
            shift,
            textcoords="offset points",
            ha=align,
            fontsize=9,
        )
    axes.set_xlim(20, 195)
    axes.set_ylim(40, 90)
    axes.set_xlabel("Fréchet distance to clean scenes, pixels (left is better)")
    axes.set_ylabel("captions right, % (up is better)")
    return figure


# ------------------------------------------------------------------ numbers


def entries(name: str, row: str) -> list[dict]:
    """The entries of a row of results/`name`.json, one for each seed."""
    return [e for e in json.loads((RESULTS / f"{name}.json").read_text()) if e["row"] == row]


def distances(name: str, row: str, space: str, seeds: set[int] | None = None) -> list[float]:
    """Fréchet distances to clean images in a feature space, of all seeds or of `seeds`."""
    return [
        entry["metrics"][space]["frechet"]
        for entry in entries(name, row)
        if seeds is None or entry["seed"] in seeds
    ]


def grid_ratio(share: int, level: str) -> float:
    """robust-adversarial over DDPM in pixels, on digits of which `share` % have noise of `level`.
    All of them with 0.2 is a row of the table `dirt`, three seeds."""
    name, row = "grid", f"{share}% with {level}"
    if (share, level) == (100, "0.2"):
        name, row = "dirt", "noise on all"
    robust, plain = (distances(name, f"{row}: {m}", "pixels") for m in ("adversarial", "DDPM"))
    return mean(robust) / mean(plain)


def spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


# ------------------------------------------------------------------ drawing


def subplots(count: int, size: tuple[float, float], **shared) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, **shared)[0].tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def point(axes: Axes, x: float, y: float, error, color: str, marker: str, label: str = "") -> None:
    """error: of x, as matplotlib takes it; None for none. label: for the legend."""
    axes.errorbar(x, y, xerr=error, color=color, fmt=marker, ms=6, elinewidth=1, label=label)


def label_rows(axes: Axes, labels) -> None:
    """The first label at the top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def finish_ratios(axes, title: str, label: str, right: float, rows) -> None:
    """Title, axes and row labels of a panel of ratios. right: where its axis ends."""
    unit_line(axes)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.set_xlim(0, right)
    label_rows(axes, rows)


def unit_line(axes: Axes) -> None:
    axes.axvline(1, color=GREY, linewidth=1, linestyle="--")


def save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


if __name__ == "__main__":
    main()
