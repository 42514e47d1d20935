"""Images of images, and curves as SVG that takes its colours from the page around it."""

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
_DASHES = ["-", "--", ":", "-."]  # the second sign of a series, for those who see no colours


def image_grid(images: Tensor, columns: int = 8, scale: int | None = None) -> Image:
    """images: (N, C, H, W), C 1 or 3, in [-1, 1], clamped to it.  =>  a PIL image, RGB.

    scale: whole-number enlargement, nearest neighbour; by default such that an image has a side
    of at least 48 pixels. The gutters are mid-gray, so that white and black images keep an edge.
    """
    from PIL import Image

    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise InputError(f"need images (N, 1 or 3, H, W), got shape {tuple(images.shape)}")
    count, _, height, width = images.shape
    scale = scale or max(1, -(-48 // min(height, width)))
    columns = min(columns, count)
    rows, gutter = -(-count // columns), max(1, scale // 3)
    bytes_ = (images.detach().cpu().float().nan_to_num().clamp(-1, 1) + 1) * 127.5
    bytes_ = bytes_.round().to(torch.uint8).expand(-1, 3, -1, -1)
    bytes_ = bytes_.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
    step_y, step_x = height * scale + gutter, width * scale + gutter
    canvas = torch.full((rows * step_y - gutter, columns * step_x - gutter, 3), 128).to(torch.uint8)
    for i, image in enumerate(bytes_):
        y, x = i // columns * step_y, i % columns * step_x
        canvas[y : y + height * scale, x : x + width * scale] = image
    return Image.fromarray(canvas.numpy())


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """`image_grid` as a PNG file, whole or absent; makes the folder. InputError if it cannot."""
    grid = image_grid(images, columns)
    with whole_file(path) as file:
        grid.save(file, format="PNG")


@dataclass(frozen=True)
class Curve:
    """One line of a chart. colour: 0 to 7, the series' place in the page's palette."""

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
    """An inline `<svg>`, without title or legend (the page has them), for use inside HTML.

    description: what a screen reader says. mark: (x, words), a vertical line. size: width and
    height in inches, which say how large the letters are beside the curves. The page must define
    the CSS variables --ink, --faint and --series-0 to --series-7.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": description,  # ids must not collide with those of the page's other charts
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
            axes.margins(y=0.16)  # room for the words above the curves
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
    """Drop what only a file of its own needs, and put the page's variables in."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would reach the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    variables = {_INK: "--ink", _FAINT: "--faint"}
    variables |= {colour: f"--series-{i}" for i, colour in enumerate(_SERIES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
