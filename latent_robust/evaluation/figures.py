"""Grids of images as PNG files, and curves as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.files import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

# Colours that stand for CSS variables until the SVG is written.
_INK, _FAINT = "#010203", "#040506"
_SERIES = [f"#0a0b{i:02x}" for i in range(8)]
_DASHES = ["-", "--", ":", "-."]  # tells series apart without colours
_LEAST_SIDE = 48  # pixels of an image in a grid


def grid_geometry(height: int, width: int, scale: int | None = None) -> tuple[int, int]:
    """=>  (scale, step): the enlargement of an image of this size in a grid, and the distance in
    pixels from one column to the next, gutter included."""
    scale = scale or max(1, -(-_LEAST_SIDE // min(height, width)))
    return scale, width * scale + max(1, scale // 3)


def image_grid(images: Tensor, columns: int = 8, scale: int | None = None) -> Image:
    """images: (N, C, H, W), C 1 or 3, in [-1, 1], clamped to it.  =>  a PIL image, RGB.

    scale: whole-number enlargement, nearest neighbour; by default the smallest that gives an image
    a side of at least 48 pixels. The gutters are mid-gray, so white and black images keep an edge.
    """
    from PIL import Image

    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise InputError(f"need images (N, 1 or 3, H, W), got shape {tuple(images.shape)}")
    count, _, height, width = images.shape
    scale, step_x = grid_geometry(height, width, scale)
    columns = min(columns, count)
    rows, gutter = -(-count // columns), step_x - width * scale
    bytes_ = (images.detach().cpu().float().nan_to_num().clamp(-1, 1) + 1) * 127.5
    bytes_ = bytes_.round().to(torch.uint8).expand(-1, 3, -1, -1)
    bytes_ = bytes_.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
    step_y = height * scale + gutter
    canvas = torch.full((rows * step_y - gutter, columns * step_x - gutter, 3), 128).to(torch.uint8)
    for i, image in enumerate(bytes_):
        y, x = i // columns * step_y, i % columns * step_x
        canvas[y : y + height * scale, x : x + width * scale] = image
    return Image.fromarray(canvas.numpy())


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write `image_grid` as a PNG file, which is whole or absent. Makes the folder. InputError if
    the file cannot be written."""
    grid = image_grid(images, columns)
    with whole_file(path) as file:
        grid.save(file, format="PNG")


@dataclass(frozen=True)
class Curve:
    """One line of a chart. colour: the series' place in the page's palette of 8."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0


def curves_svg(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    description: str,
    log_x: bool = False,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
    size: tuple[float, float] = (5.2, 2.9),
) -> str:
    """=>  an inline `<svg>` for use inside HTML, without title and legend, which the page has.

    description: what a screen reader says. mark: (x, label) of a vertical line. size: width and
    height in inches; smaller means larger letters relative to the curves. The page must define the
    CSS variables --ink, --faint and --series-0 to --series-7.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": description,  # keeps ids apart from those of the page's other charts
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _FAINT,
        "grid.color": _FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "path.simplify": True,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for curve in curves:
            colour, dash = _SERIES[curve.colour % 8], _DASHES[curve.colour % 4]
            axes.plot(curve.x, curve.y, color=colour, linestyle=dash, linewidth=1.6)
        if mark is not None:
            axes.margins(y=0.16)  # room for the label above the curves
            axes.axvline(mark[0], color=_INK, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(
                mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                textcoords="offset points", va="top", fontsize=9,
            )  # fmt: skip
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", linewidth=0.5)
        axes.tick_params(length=3, width=0.6)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), description)


def _inline(svg: str, description: str) -> str:
    """Remove what only a separate file needs, and insert the page's CSS variables."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    variables = {_INK: "--ink", _FAINT: "--faint"}
    variables |= {colour: f"--series-{i}" for i, colour in enumerate(_SERIES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
