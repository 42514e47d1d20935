"""What only shows in many pictures: the same mark in the same place, and duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .measures import Picture, gray

# ------------------------------------------------------------------ marks

SIDE = 64  # pixels, at which pictures are laid over each other
CLIP = 32  # a slope counts up to this, so that no single picture decides
CONSISTENT = 0.3  # mean over root mean square of the slope where a mark is
CHANCE = 4.0  # without a mark the ratio has a standard deviation of 1 / sqrt(pictures)
LEAST_RMS = 2.0
FEWEST = 30  # pictures
# Share of the places with a consistent slope. A mark covers a few per cent. If it is more, all
# pictures are laid out alike (centred digits, shoes), and a mark cannot be told from that.
SMALLEST, LARGEST = 0.003, 0.12
# Scores. Measured with a half-transparent word on 50 % of photographs, emoji and CIFAR-10: 95 % of
# the marked pictures exceed 0.43, the others have a median of 0.0 to 0.1. Clean emoji, of which
# many are the same yellow circle, have a median of 0.34 and no gap.
MARKED, CLEARLY_MARKED, CLEARLY_NOT = 0.4, 0.55, 0.2


def slopes(picture: Picture) -> NDArray[np.float32]:
    """Differences to the right and below of a picture of SIDE x SIDE pixels, (2, SIDE - 1,
    SIDE - 1)."""
    image = Image.fromarray(gray(picture).round().astype(np.uint8))
    smaller = min(image.size) > SIDE
    resized = image.resize(
        (SIDE, SIDE), Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    )
    values = np.asarray(resized, np.float32)
    right, down = np.diff(values, axis=1)[:-1], np.diff(values, axis=0)[:, :-1]
    return np.clip(np.stack([right, down]), -CLIP, CLIP)


@dataclass(frozen=True)
class Mark:
    """A mark that pictures share: the mean slopes where they agree, 0 elsewhere.

    cover: share of the places. The method is that of Dekel et al. 2017, "On the effectiveness of
    visible watermarks": what many pictures share remains in the mean of their gradients."""

    pattern: NDArray[np.float32]
    cover: float

    def score(self, own: NDArray[np.float32]) -> float:
        """Correlation of a picture's slopes with the mark's, where the mark is, in [-1, 1]."""
        places = self.pattern != 0
        own, mark = own[places], self.pattern[places]
        return float((own * mark).sum() / np.sqrt((own * own).sum() * (mark * mark).sum() + 1e-6))


def find_mark(all_slopes: Iterable[NDArray[np.float32]]) -> tuple[Mark | None, str]:
    """=>  the mark that some pictures share, None if there is none; and why it could not be looked
    for, "" if it could. all_slopes: of each picture."""
    count, total, squared = 0, np.zeros(()), np.zeros(())
    for own in all_slopes:
        count, total, squared = count + 1, total + own, squared + own * own
    if count < FEWEST:
        return None, f"a mark needs at least {FEWEST} pictures"
    mean = total / count
    consistency = np.abs(mean) / np.maximum(np.sqrt(squared / count), LEAST_RMS)
    places = consistency > max(CONSISTENT, CHANCE / np.sqrt(count))
    cover = float(places.mean())
    if cover > LARGEST:
        return None, "all pictures are laid out alike, and a mark does not stand out from that"
    if cover < SMALLEST:
        return None, ""
    return Mark((mean * places).astype(np.float32), cover), ""


def shows_mark(scores: NDArray[np.float32]) -> bool:
    """Whether some pictures have the mark and the others do not. Pictures that resemble each other
    have a common pattern too, but each has a part of it."""
    having, lacking = scores[scores > MARKED], scores[scores <= MARKED]
    if len(having) == 0:
        return False
    clear = np.median(having) > CLEARLY_MARKED
    return bool(clear and (len(lacking) == 0 or np.median(lacking) < CLEARLY_NOT))


# ------------------------------------------------------------------ duplicates

NEAR_BITS = 8  # of 64, by which the hashes of near duplicates differ at most
THUMB = 16  # pixels a side, of the thumbnails that are compared then
NEAR_DIFFERENCE = 0.12  # of two thumbnails, as a share of their contrast
LARGEST_BUCKET = 256  # pictures with an equal quarter of the hash that are compared with each other


def thumbnail(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(THUMB, THUMB), of the brightness (H, W), 0..255."""
    image = Image.fromarray(values.round().astype(np.uint8))
    return np.asarray(image.resize((THUMB, THUMB), Image.Resampling.LANCZOS))


def perceptual_hash(values: NDArray[np.float32]) -> int:
    """64 bits (pHash, by imagehash), of the brightness (H, W), 0..255."""
    import imagehash

    image = Image.fromarray(values.round().astype(np.uint8))
    bits = imagehash.phash(image).hash.ravel()
    return int(np.packbits(bits).view(">u8")[0])


def groups(
    exact: Sequence[bytes], hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups of equal and of nearly equal pictures.

    exact: a checksum of each picture's pixels; hashes: (N,); thumbs: (N, THUMB, THUMB).
    =>  for each picture the lowest index of its group of equal pictures, (N,), and of its group of
    equal or nearly equal ones, (N,); its own index if it has no duplicate.

    Two hashes of 64 bits that differ in at most 3 bits agree in one of four quarters; with more
    bits most still do. Only such pairs are compared, so a million pictures take seconds.
    """
    count = len(exact)
    first: dict[bytes, int] = {}
    equal = np.array([first.setdefault(key, index) for index, key in enumerate(exact)], np.int64)
    parent = equal.copy()

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    unique = np.flatnonzero(equal == np.arange(count))
    flat = thumbs.reshape(count, THUMB * THUMB)
    codes = hashes[unique]
    for quarter in range(4):
        part = (codes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        bounds = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, bounds):
            if not 1 < len(bucket) <= LARGEST_BUCKET:
                continue
            distance = np.bitwise_count(codes[bucket][:, None] ^ codes[bucket])
            for one, other in zip(*np.nonzero(np.triu(distance <= NEAR_BITS, 1)), strict=True):
                a, b = bucket[one], bucket[other]
                pair = int(unique[a]), int(unique[b])
                ours, theirs = flat[list(pair)].astype(np.float32)
                difference = np.sqrt(np.square(ours - theirs).mean())
                if difference > NEAR_DIFFERENCE * max(1.0, min(ours.std(), theirs.std())):
                    continue
                low, high = sorted(map(root, pair))
                parent[high] = low
    near = np.array([root(index) for index in range(count)], np.int64)
    return equal, near
