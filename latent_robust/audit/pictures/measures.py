"""What is measured of one picture. Each function takes uint8 (H, W, C) with C = 1 or 3."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Picture = NDArray[np.uint8]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

NOISE_TILE = 8  # pixels a side
NOISE_QUANTILE = 0.1  # of the tiles: noise is everywhere, also where a picture has no texture
# This quantile of the spread in tiles of white noise, over the noise's standard deviation.
NOISE_READING = 0.855
LOWEST, HIGHEST = 8, 247  # of the mean of a tile; beyond, noise is clipped
CLIPPED_NOISE = 0.58  # what is left of the spread of noise of which half is cut off

EDGE_CONTRAST = 24  # an edge is a step of at least this height, in 0..255
EDGE_REACH = 3  # pixels on each side that belong to an edge
EDGES = 128  # the strongest ones of a tile
EDGE_TILES, EDGE_TILE = 4, 32  # tiles a side at most, and pixels a side of a tile at least
FEWEST_EDGES = 8

BANDS = 16  # of the spectrum, of 1/32 cycles per pixel
MIDDLE, HIGHEST_BANDS = slice(4, 8), slice(12, 16)

FLAT = 3  # differences up to this count as none
LEAST_SIDE = 0.08  # of a rectangle, as a share of the shorter side
LEAST_PIXELS = 5
NEUTRAL = 6  # difference of the channels up to which a colour is gray
RECTANGULAR = 0.97  # share of the bounding box that is filled
BLACK = 24  # the brightest pixel of a black bar
BAR_BORDER = 0.6  # share of each border of the picture between the bars that is not black
FADING = 0.5  # nearly white and black pixels for each white or black one, where light was lost


def gray(picture: Picture) -> NDArray[np.float32]:
    """(H, W), 0..255."""
    values = picture.astype(np.float32)
    return values[..., 0] if values.shape[2] == 1 else values @ LUMA


def noise(picture: Picture) -> float | None:
    """Standard deviation of the noise, in units of [0, 1].

    The residual of a second difference (Immerkaer 1996, "Fast noise variance estimation") in the
    picture's flattest tiles: noise is in them too, structure is not. None for a picture of fewer
    than four tiles."""
    channel = picture[..., picture.shape[2] // 2].astype(np.float32)  # green
    rows = channel[:, 2:] - 2 * channel[:, 1:-1] + channel[:, :-2]
    residual = (rows[2:] - 2 * rows[1:-1] + rows[:-2]) / 6
    spread = np.sqrt(_tiles(residual * residual, NOISE_TILE))
    mean = _tiles(channel[1:-1, 1:-1], NOISE_TILE)
    if spread.size < 4:
        return None
    spread[(mean <= LOWEST) | (mean >= HIGHEST)] /= CLIPPED_NOISE
    return float(np.quantile(spread, NOISE_QUANTILE)) / NOISE_READING / 255


def _tiles(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of square tiles, (T,)."""
    height, width = (n // side * side for n in values.shape)
    tiles = values[:height, :width].reshape(height // side, side, width // side, side)
    return tiles.mean((1, 3)).ravel()


def edge_width(values: NDArray[np.float32]) -> float | None:
    """Standard deviation in pixels of the blur of the sharpest edges. values: (H, W), 0..255.

    A step of height h that is blurred by a Gaussian of standard deviation s has the largest slope
    h / (s sqrt(2 pi)). Each tile gives the width of its strongest edges; the sharpest quarter of
    the tiles counts, so a blurred background is not a blurred picture. None without edges."""
    rows, columns = (max(1, min(EDGE_TILES, n // EDGE_TILE)) for n in values.shape)
    tiles = [np.array_split(band, columns, axis=1) for band in np.array_split(values, rows)]
    found = []
    for row, column in product(range(rows), range(columns)):
        tile = tiles[row][column]
        # Of many tiles, each is looked at in one direction, like the colours of a chessboard.
        axes = (tile, tile.T) if rows * columns < 8 else (tile.T if (row + column) % 2 else tile,)
        slopes = np.concatenate([_relative_slopes(axis) for axis in axes])
        if slopes.size >= FEWEST_EDGES:
            found.append(np.quantile(slopes, 0.9))
    if not found:
        return None
    return float(1 / (sqrt(2 * pi) * np.quantile(found, 0.75)))


def _relative_slopes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest slope over height of the strongest edges along the rows, (E,)."""
    slope = np.abs(np.diff(values, axis=1))
    width = slope.shape[1]
    inner = slope[:, EDGE_REACH : width - EDGE_REACH]
    if inner.size == 0:
        return np.empty(0, np.float32)
    count = min(EDGES, inner.size)
    strongest = np.argpartition(inner.ravel(), -count)[-count:]
    row, column = np.divmod(strongest, inner.shape[1])
    # The pixels from EDGE_REACH before the step to EDGE_REACH after it.
    around = column[:, None] + np.arange(2 * EDGE_REACH + 2)
    window = values[row[:, None], around]
    height = window.max(1) - window.min(1)
    steps = np.abs(np.diff(window, axis=1))
    peak = inner.ravel()[strongest]
    edge = (height >= EDGE_CONTRAST) & (peak >= steps.max(1))
    return peak[edge] / height[edge]


@lru_cache(8)
def _frequencies(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """=>  a window (H, W) of mean square 1, and the band of each frequency, (H * (W // 2 + 1),)."""
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    window /= np.sqrt(np.square(window).mean())
    frequency = np.maximum(np.abs(fft.fftfreq(height))[:, None], fft.rfftfreq(width))
    band = np.minimum((frequency * 2 * BANDS).astype(np.int64), BANDS - 1)
    return window.astype(np.float32), band.ravel()


def power_by_band(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power of the frequencies in BANDS equal bands from 0 to 1/2 cycles per pixel, of values
    (H, W): white noise of standard deviation s has s^2 in all of them."""
    window, band = _frequencies(*values.shape)
    power = np.abs(fft.rfft2((values - values.mean()) * window)) ** 2 / values.size
    total = np.bincount(band, power.ravel(), BANDS)
    return total / np.maximum(np.bincount(band, minlength=BANDS), 1)


def lost_detail(power: NDArray[np.float64]) -> float:
    """By how many powers of ten the highest frequencies are weaker than the middle ones.

    power: (BANDS,). A photograph or drawing loses about 1.5 from 1/8 .. 1/4 to 3/8 .. 1/2 cycles
    per pixel, one that was enlarged to twice its size 2.6."""
    middle, high = (power[part].mean() for part in (MIDDLE, HIGHEST_BANDS))
    return float(np.log10(middle + 1e-3) - np.log10(high + 1e-3))


def missing_block(
    picture: Picture, values: NDArray[np.float32]
) -> tuple[float, tuple[int, int, int, int]] | None:
    """The largest gray, black or white rectangle inside a picture: its share of the area, and top,
    left, bottom, right. None if there is none, and for bars and backgrounds, which reach a whole
    side. values: the picture's brightness (H, W), 0..255."""
    height, width = picture.shape[:2]
    flat = _flat(picture, values)
    least = max(LEAST_PIXELS, LEAST_SIDE * min(height, width))
    labels, _ = ndimage.label(flat)
    background = _border_colour(picture)
    best = None
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        top, left = box[0].start, box[1].start
        bottom, right = box[0].stop + 2, box[1].stop + 2
        rows, columns = bottom - top, right - left
        if min(rows, columns) < least or rows >= height - 2 or columns >= width - 2:
            continue
        if (labels[box] == number).mean() < RECTANGULAR:
            continue
        colour = picture[(top + bottom) // 2, (left + right) // 2].astype(int)
        if np.ptp(colour) > NEUTRAL:
            continue
        if background is not None and np.abs(colour - background).max() <= 8:
            continue
        share = rows * columns / (height * width)
        if best is None or share > best[0]:
            best = (share, (top, left, bottom, right))
    return best


def _flat(picture: Picture, brightness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W): pixels that have the colour of the next ones to the right and below, as these do."""
    same = np.ones((picture.shape[0] - 1, picture.shape[1] - 1), bool)
    channels: list[NDArray[Any]] = [brightness]
    if picture.shape[2] == 3:
        channels.append(picture[..., 0].astype(np.int16) - picture[..., 2])
    for channel in channels:
        same &= (np.abs(np.diff(channel, axis=0)) <= FLAT)[:, :-1]
        same &= (np.abs(np.diff(channel, axis=1)) <= FLAT)[:-1]
    flat = np.zeros(picture.shape[:2], bool)
    flat[:-2, :-2] = same[:-1, :-1] & same[1:, 1:] & same[1:, :-1] & same[:-1, 1:]
    return flat


def _border_colour(picture: Picture) -> NDArray[np.int64] | None:
    """The colour of most of the outermost pixels; None if they have no common one."""
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    border = np.concatenate(edges).astype(int)
    middle = np.median(border, axis=0).astype(int)
    same = (np.abs(border - middle).max(1) <= 8).mean()
    return middle if same > 0.5 else None


def bars(values: NDArray[np.float32]) -> float:
    """Thickness of two black bars at opposite sides, the thinner one as a share of the side; 0
    without. Between bars a picture reaches from side to side; on a black background it does not.
    values: (H, W), 0..255."""
    return max(_bars(values), _bars(values.T))


def _bars(values: NDArray[np.float32]) -> float:
    """At the top and the bottom."""
    height = len(values)
    black = values.max(1) <= BLACK
    top, bottom = int(black.argmin()), int(black[::-1].argmin())
    if black.all() or min(top, bottom) == 0:
        return 0.0
    inside = values[top : height - bottom]
    borders = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
    if min((line > BLACK).mean() for line in borders) < BAR_BORDER:
        return 0.0
    return min(top, bottom) / height


def clipped(values: NDArray[np.float32]) -> float:
    """Share of the pixels that are black or white because light was lost. values: (H, W), 0..255.

    Where light fades into white, many pixels are nearly white; where a drawing is white, none."""
    extreme = ((values < 1) | (values > 254)).mean()
    nearly = (((values >= 1) & (values < 16)) | ((values > 239) & (values <= 254))).mean()
    return float(extreme) if nearly > FADING * extreme else 0.0


def brightness(values: NDArray[np.float32]) -> tuple[float, float]:
    """The 2nd and the 98th percentile, in [0, 1]. values: (H, W), 0..255."""
    counts = np.bincount(values.astype(np.uint8).ravel(), minlength=256).cumsum()
    low, high = np.searchsorted(counts, [0.02 * counts[-1], 0.98 * counts[-1]])
    return float(low) / 255, float(high) / 255


def colourless(picture: Picture) -> bool:
    """Whether a picture is gray, in one channel or in three."""
    if picture.shape[2] == 1:
        return True
    red, green, blue = np.moveaxis(picture.astype(np.int16), 2, 0)
    coloured = (np.abs(red - green) > 4) | (np.abs(green - blue) > 4)
    return bool(coloured.mean() < 0.02)
