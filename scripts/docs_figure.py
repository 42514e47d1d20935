#!/usr/bin/env python
"""Draw the figure of docs/how-it-works.md: the rule, and what it does to Gaussian data.

    python scripts/docs_figure.py        # writes docs/img/how-it-works.png

The curves on the right are the closed form `Weighting.std_ratio`, not measurements.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from latent_robust.core import Weighting

FIGURE = Path(__file__).parent.parent / "docs/img/how-it-works.png"
GREY, BLUE, ORANGE = "#555555", "#1f5fa8", "#c8641e"


def draw_rule(axes: Axes) -> None:
    """A sample on a curve of clean images, its noise moved by w, and where predictions lead."""
    x = np.linspace(-1.5, 1.5, 100)
    axes.plot(x, 0.25 * x**2, color=GREY, lw=2)
    axes.text(1.3, 0.12, "clean images", color=GREY, ha="center")
    sample, noisy, perturbed = (0, 0), (0.35, 1.35), (-0.75, 1.6)
    wrong = (-0.86, 0.72)
    axes.annotate("", perturbed, noisy, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.5})
    axes.text(-0.2, 1.58, r"$\sigma w$", ha="center")
    for start, end, color, style in (
        (noisy, sample, BLUE, "-"),
        (perturbed, sample, BLUE, "-"),
        (perturbed, wrong, ORANGE, "--"),
    ):
        arrow = {"arrowstyle": "->", "color": color, "lw": 1.8, "ls": style, "shrinkB": 5}
        axes.annotate("", end, start, arrowprops=arrow)
    axes.plot(*zip(sample, noisy, perturbed, strict=True), "o", color="black", ms=6)
    axes.plot(*wrong, "o", color=ORANGE, ms=6)
    axes.text(0.45, 1.35, "noisy", va="center")
    axes.text(-0.85, 1.6, "noise moved by w", ha="right", va="center")
    axes.text(-0.98, 0.72, "plain: the implied\nimage moves too", color=ORANGE, ha="right")
    axes.text(0.1, -0.28, "regularized: the implied image stays", color=BLUE, ha="center")
    axes.set(xlim=(-2.2, 1.7), ylim=(-0.45, 1.85), title="The rule")
    axes.axis("off")


def draw_effect(axes: Axes) -> None:
    """What of a direction's standard deviation is left after sampling, by its size."""
    tau = np.logspace(-1.3, 1.3, 120)
    for weight, color in ((1, "#8ab4dc"), (3, "#4a86c0"), (10, "#1b3f6e")):
        ratio = [Weighting("band", weight, 1.0).std_ratio(t) for t in tau]
        axes.plot(tau, ratio, color=color, lw=2, label=f"weight {weight}")
    axes.axvline(1, color=GREY, ls=":")
    axes.text(0.06, 0.05, "noise: little is left", color=GREY)
    axes.text(18, 0.05, "structure: most is left", ha="right", color=GREY)
    axes.set(
        xscale="log",
        ylim=(0, 1.05),
        xlabel="standard deviation of the data in a direction, over the band",
        ylabel="share that is left in samples",
        title="The effect (closed form)",
    )
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    figure, (rule, effect) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_rule(rule)
    draw_effect(effect)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=100, metadata={"Software": None})
    print(f"{FIGURE}: {FIGURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
