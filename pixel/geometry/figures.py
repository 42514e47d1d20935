"""Figures of the toys: generated points, sampling trajectories and the learned score."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from latent_robust.core import NoiseProcess
from latent_robust.evaluation.figures import image_grid
from latent_robust.files import whole_file

from .network import ResidualMLP
from .task import generate_points, noise_scheduler
from .toys import Toy

TRAJECTORIES = 40
# The time at which sigma / alpha is .2, the std of the contamination. There a model must decide
# whether a displacement is noise or structure.
LOW_NOISE = 58
ARROWS = 15  # per side of the field
INK = "#1f4e79"
TRUE = {"s": 2, "color": "#c0392b", "alpha": 0.3, "linewidths": 0}


def draw_clouds(toy: Toy, training: Tensor, panels: dict[str, Tensor], path: Path) -> None:
    """Scatter plots, one column per panel and one row per view of the truth.

    training: (N, D), whose range sets the axes. panels: title -> points (N, D). Each panel says
    which share of its points lies outside the axes."""
    views = toy.truth.views()
    figure, grid = _grid(len(views), len(panels))
    for row, (view_name, view) in zip(grid, views.items(), strict=True):
        limits = _limits(toy, training, view)
        for axes, (title, points) in zip(row, panels.items(), strict=True):
            shown = _project(toy, points, view)
            axes.scatter(*shown.T, s=1, color=INK, alpha=0.4, linewidths=0)
            outside = (shown.abs() > limits).any(1).double().mean().item()
            label = f"{outside:.0%} beyond" if outside >= 0.005 else ""
            axes.text(0.03, 0.97, label, transform=axes.transAxes, va="top", fontsize=8)
            _frame(axes, limits, title if row is grid[0] else "")
        row[0].set_ylabel(view_name)
    _save(figure, path)


def draw_fields(
    toy: Toy, training: Tensor, networks: dict[str, ResidualMLP], seed: int, path: Path
) -> None:
    """Top row: sampling trajectories, from pure noise to the generated points (dots). Bottom row:
    the score at sigma / alpha = .2, as arrows from a point to the model's estimate of the clean
    point. Both in the first view, with the truth in red."""
    view_name, view = next(iter(toy.truth.views().items()))
    truth = _project(toy, toy.fresh(1000, seed), view)
    limits = _limits(toy, training, view)
    figure, grid = _grid(2, len(networks))
    for column, (title, network) in enumerate(networks.items()):
        paths = torch.stack([_project(toy, x, view) for x in trajectories(network, seed)])
        axes = grid[0][column]
        axes.scatter(*truth.T, **TRUE)
        axes.plot(*paths.unbind(-1), color=INK, alpha=0.35, linewidth=0.6)
        axes.scatter(*paths[-1].T, s=6, color=INK)
        _frame(axes, limits.clamp_min(2.5), title)

        axes = grid[1][column]
        axes.scatter(*truth.T, **TRUE)
        side = torch.linspace(-1, 1, ARROWS)
        start = limits * torch.cartesian_prod(side, side)
        end = _project(toy, clean_estimate(network, toy.truth.origin + start @ view), view)
        shift = end - start
        axes.quiver(*start.T, *shift.T, angles="xy", scale_units="xy", scale=1, color=INK)
        _frame(axes, limits, "")
    grid[0][0].set_ylabel(f"trajectories, {view_name}".removesuffix(", "))
    grid[1][0].set_ylabel(f"score, {view_name}".removesuffix(", "))
    _save(figure, path)


def draw_images(panels: dict[str, Tensor], path: Path) -> None:
    """Grids of images. panels: title -> points (N, 64), images of 8 x 8; the first 25 are shown."""
    figure, (row,) = _grid(1, len(panels))
    for axes, (title, points) in zip(row, panels.items(), strict=True):
        axes.imshow(image_grid(points[:25].view(-1, 1, 8, 8), columns=5))
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    _save(figure, path)


def trajectories(network: ResidualMLP, seed: int) -> list[Tensor]:
    """=>  x before every sampling step and at the end, each (TRAJECTORIES, D)."""
    visited: list[Tensor] = []

    def record(x: Tensor, step: int, points: range) -> Tensor:
        visited.append(x.flatten(1))
        return x

    end = generate_points(network, TRAJECTORIES, seed, record)
    return [*visited, end]


@torch.no_grad()
def clean_estimate(network: ResidualMLP, points: Tensor) -> Tensor:
    """The network's E[clean | point] for points (N, D) taken as clean points plus noise of std .2.

    =>  (N, D). The score is (E - point) / .2**2 (Tweedie)."""
    process = NoiseProcess.from_scheduler(noise_scheduler())
    t = torch.full((len(points),), LOW_NOISE)
    alpha, sigma = process(t, points)
    noisy = alpha * points
    prediction = network(noisy, t).sample
    return process.parameterization.to_sample(noisy, prediction, alpha, sigma)


def _project(toy: Toy, points: Tensor, view: Tensor) -> Tensor:
    """points: (N, D); view: (2, D)  =>  coordinates in the view, (N, 2)."""
    return (points - toy.truth.origin) @ view.T


def _limits(toy: Toy, training: Tensor, view: Tensor) -> Tensor:
    """Half-widths of the two axes, (2,): 1.3 times the 99.5 % quantile of the training points."""
    return 1.3 * _project(toy, training, view).abs().quantile(0.995, dim=0)


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(1.9 * columns, 1.95 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _frame(axes: Axes, limits: Tensor, title: str) -> None:
    axes.set_xlim(-limits[0].item(), limits[0].item())
    axes.set_ylim(-limits[1].item(), limits[1].item())
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=7)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=90)
