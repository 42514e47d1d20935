"""JPEG quality: from the quantization tables of a file, or from the pixels that it left behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft

# The luminance table of the standard (ITU T.81, table K.1), which quality 50 uses unchanged.
# fmt: off
STANDARD = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])
# fmt: on
_MATRIX = fft.dct(np.eye(8), norm="ortho", axis=0).astype(np.float32)
_ORDER = np.add.outer(np.arange(8), np.arange(8)).ravel()  # u + v
HIGH = _ORDER >= 6  # coefficients that quantization sets to 0
LOW = (_ORDER >= 1) & (_ORDER <= 4)  # those whose steps can be read
ACTIVE = 4  # a block is flat if no coefficient exceeds this
ZERO = 0.7  # rounding the pixels moves a coefficient by about 0.3
PART = 128  # pixels a side that are looked at
# Share of the zeros that must lie on the grid. Clean photographs, drawings and emoji reach 0.07 in
# 5 % of cases, JPEG of quality 75 exceeds 0.18 in 95 %.
ON_GRID = 0.1
# Smooth pictures have no high coefficients, but their blocks show. Clean photographs of 256 pixels
# and emoji of 64 reach 1.03 in 1 % of cases; small pictures have too few blocks for that.
BLOCKY, BLOCKY_SIDE = 1.15, 64
STEPS = np.arange(3, 100, dtype=np.float32)
FITTING = 0.8  # share of the coefficients that are multiples of their step
NEAR = 1.2  # a coefficient is a multiple if it lies within this distance
FEWEST = 6  # coefficients from which a step is read
CLIPPED = 4  # black and white pixels move coefficients by up to about this much
GAP = 0.15  # quantile of the coefficients that are not 0, which lies near the step
HARDLY = 95.0  # the quality where no coefficient tells


def quality_of_tables(tables: Sequence[Sequence[int]]) -> float:
    """The quality 1 .. 100 whose luminance table is nearest to the file's first one. Programs that
    scale tables otherwise get the one that loses as much."""
    # The median: large entries are cut at 255.
    scale = float(np.median(100 * np.sort(np.array(tables[0])) / np.sort(STANDARD)))
    return _quality(scale)


def _quality(scale: float) -> float:
    """The inverse of libjpeg's scaling of the table, in per cent."""
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return float(np.clip(quality, 1, 100))


def quality_of_pixels(values: NDArray[np.float32]) -> float | None:
    """The quality with which a picture was saved before, if its grid of blocks is still there.

    values: (H, W), 0..255. JPEG rounds the coefficients of 8 x 8 blocks to multiples of a step; the
    largest step of which most are multiples is the one (Fan and de Queiroz 2003, "Identification of
    bitmap compression history"). None if there is no grid: never recompressed, or resized, cut off
    the grid, or changed much afterwards."""
    part = _middle(values)
    everywhere = _blocks(part, 0)
    here, there = _active(everywhere), _active(_blocks(part, 4))
    zeros, elsewhere = _zeros(here), _zeros(there)
    on_grid = zeros is not None and elsewhere is not None and zeros - elsewhere >= ON_GRID
    if not on_grid and blockiness(values) < BLOCKY:
        return None
    steps = {int(place): _step(here[:, place]) for place in np.flatnonzero(LOW)}
    means = np.unique(everywhere[:, 0].round(1))
    if len(means) >= 2 * FEWEST:  # of few different ones any number may be the step
        steps[0] = _step(means)
    scales = [100 * step / STANDARD[place] for place, step in steps.items() if step is not None]
    return _quality(float(np.median(scales))) if scales else HARDLY


def blockiness(values: NDArray[np.float32]) -> float:
    """The jump between neighbouring blocks of 8 x 8 over that beside it, median over the borders of
    one direction, the smaller of both; 0 for less than BLOCKY_SIDE pixels. values: (H, W)."""
    if min(values.shape) < BLOCKY_SIDE:
        return 0.0
    ratios = []
    for lines in (values, values.T):
        jump = np.abs(np.diff(lines, axis=1)).mean(0)
        border = np.arange(7, len(jump) - 1, 8)
        beside = (jump[border - 1] + jump[border + 1]) / 2
        ratios.append(np.median(jump[border] / (beside + 0.05)))
    return float(min(ratios))


def _middle(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most PART pixels a side, on the grid."""
    top, left = (max(0, (n - PART) // 2) // 8 * 8 for n in values.shape)
    return values[top : top + PART, left : left + PART]


def _blocks(values: NDArray[np.float32], offset: int) -> NDArray[np.float32]:
    """DCT coefficients of all blocks, (B, 64)."""
    height, width = (max(0, n - offset) // 8 * 8 for n in values.shape)
    if 0 in (height, width):
        return np.empty((0, 64), np.float32)
    part = values[offset : offset + height, offset : offset + width]
    blocks = part.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    return (_MATRIX @ blocks @ _MATRIX.T).reshape(-1, 64)


def _active(coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of blocks that are not flat."""
    return coefficients[np.abs(coefficients[:, 1:]).max(1, initial=0) > ACTIVE]


def _zeros(coefficients: NDArray[np.float32]) -> float | None:
    """Share of the high coefficients that are 0; None without a block that is not flat."""
    return float((np.abs(coefficients[:, HIGH]) < ZERO).mean()) if len(coefficients) else None


def _step(values: NDArray[np.float32]) -> float | None:
    """The step of these coefficients, (B,); None if there are too few."""
    whole = values[np.abs(values) > ZERO + NEAR]
    if len(whole) < FEWEST:
        return None
    rest = np.abs(whole - STEPS[:, None] * np.round(whole / STEPS[:, None]))
    multiple = (rest < NEAR) & (np.abs(whole) > STEPS[:, None] / 2)
    near = multiple.mean(1)
    fits = (near > FITTING) & (near > 2 * np.minimum(2 * NEAR / STEPS, 0.45))
    if fits.any():
        return float(STEPS[np.flatnonzero(fits)[-1]])
    # Where black and white pixels were clipped nothing is a multiple, but there is still a gap
    # between 0 and the step.
    beyond = np.abs(values[np.abs(values) > CLIPPED])
    return float(np.quantile(beyond, GAP)) if len(beyond) >= FEWEST else None
