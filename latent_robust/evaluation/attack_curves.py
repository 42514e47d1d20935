"""How the samples of a run degrade as the attack on its sampling trajectory gets stronger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from tqdm import tqdm

from latent_robust.files import whole_file

from .attacks import TrajectoryAttack
from .features import Extractor, metric_name
from .metrics import FeatureCache, frechet_distance
from .sampling import generate_samples

# Gradient steps of each attack.
ITERATIONS = {"random": 0, "fgsm": 1, "pgd": 10}


def attack_curve(
    network: nn.Module,
    scheduler,
    clean: FeatureCache,
    extractors: Sequence[Extractor],
    radii: Sequence[float],
    *,
    count: int,
    steps: int,
    seed: int,
    device: str = "cpu",
    **attack,
) -> list[dict]:
    """=>  one row for radius 0, which is plain sampling, and one for each of `radii`: {"radius",
    "displacement", "frechet": {extractor: distance to the clean images}}.

    All rows generate `count` images from the same noise. displacement: root mean square change of
    the images by the attack; images span [-1, 1]. attack: further settings of TrajectoryAttack.
    displacement and distances are None if the images are not finite.
    """
    rows, plain = [], None
    for radius in tqdm([0.0, *radii], "radius", leave=False):
        perturb = TrajectoryAttack(network, scheduler, radius, seed=seed, **attack)
        generated = generate_samples(
            network,
            scheduler,
            count,
            steps=steps,
            seed=seed,
            device=device,
            perturb=perturb if radius else None,
        )
        plain = generated if plain is None else plain
        finite = generated.isfinite().all().item()
        displacement = (generated - plain).square().mean().sqrt().item() if finite else None
        distances = {
            e.name: frechet_distance(e(generated), clean(e)) if finite else None for e in extractors
        }
        rows.append({"radius": radius, "displacement": displacement, "frechet": distances})
    return rows


def save_attack_figure(curves: dict[str, list[dict]], title: str, path: Path) -> None:
    """A PNG with one panel for each feature space and one for the displacement.

    curves: the rows of `attack_curve` by run, all in the same feature spaces."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    spaces = list(next(iter(curves.values()))[0]["frechet"])
    figure = Figure(figsize=(3.6 * (len(spaces) + 1), 3.2), layout="constrained")
    *panels, displacement = figure.subplots(1, len(spaces) + 1)
    for (name, rows), mark in zip(curves.items(), "osD^v<>*" * len(curves), strict=False):
        radii = [row["radius"] for row in rows]
        for axes, space in zip(panels, spaces, strict=True):
            axes.plot(
                radii, [_or_gap(row["frechet"][space]) for row in rows], f"{mark}-", label=name
            )
        displacement.plot(radii, [_or_gap(row["displacement"]) for row in rows], f"{mark}-")
    for axes, space in zip(panels, spaces, strict=True):
        axes.set_ylabel(metric_name(space))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    displacement.set_ylabel("RMS change of the images")
    for axes in (*panels, displacement):
        axes.set_xlabel("radius, in units of the noise")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
