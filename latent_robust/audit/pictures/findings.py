"""What an audit of pictures found: which pictures, why, and what training should do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..levels import rounded
from .checks import CHECKS, Check

# Dirt that the spectrum shows is hidden by a noise level at which it tells clean and dirty pictures
# apart no better than an area of 0.6 under the ROC curve: then the divergence is below this.
HIDDEN_DIVERGENCE = 0.032
BY_SPECTRUM = ("jpeg", "blur", "enlarged")
NEVER_USED = ("block", "mark", "bars")  # a part of the picture is wrong at every noise level
LADDER = tuple(0.1 * 1.25**step for step in range(24))
FEWEST_CLEAN = 10  # pictures, for their mean spectrum
MENTIONED = 3  # kinds of dirt in the verdict
OTHER = ("copy", "fit", "text")  # of each of these the largest finding
# With more dirt than this, leaving it out leaves too little, and a few trusted pictures help most.
MUCH = 0.3


@dataclass(frozen=True)
class Finding:
    """The pictures in which a check found something, the worst first.

    indices: of the pictures; values: theirs; share: of all pictures that were measured."""

    check: Check
    indices: NDArray[np.int64]
    values: NDArray[np.float64]
    share: float

    def __len__(self) -> int:
        return len(self.indices)


@dataclass
class DataAudit:
    """The result of `audit_data`.

    spec: of the data. names, captions: by index. columns: of each check its values, (N,), NaN where
    they were not measured; power: (N, BANDS), mean power of the pictures in [-1, 1] by frequency.
    first_copy: (N,), the index of the first of equal pictures. reasons: (check, index) => words.
    not_measured: check => why. unreadable: rows {"index", "name", "reason"}. refused: rows {"name",
    "reason"} of what names no picture, such as a row of metadata without a file; ignored: number of
    files that are no pictures. size: at which the pictures are trained, None if unknown.
    """

    spec: str
    names: Sequence[str]
    captions: Sequence[str]
    columns: dict[str, NDArray[np.float32]]
    power: NDArray[np.float32]
    first_copy: NDArray[np.int64]
    reasons: dict[tuple[str, int], str]
    not_measured: dict[str, str]
    unreadable: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    ignored: int
    size: int | None
    read: Callable[[int], bytes] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def findings(self) -> list[Finding]:
        """In the order of the checks; those that found nothing are left out."""
        found = []
        for check in CHECKS:
            values = self.columns.get(check.key)
            if values is None:
                continue
            beyond = values > check.threshold if check.above else values < check.threshold
            indices = np.flatnonzero(beyond)
            if len(indices) == 0:
                continue
            order = np.argsort(values[indices], kind="stable")
            indices = indices[order[::-1] if check.above else order]
            measured = np.isfinite(values).sum()
            chosen = values[indices].astype(np.float64)
            found.append(Finding(check, indices, chosen, len(indices) / max(1, measured)))
        return found

    @cached_property
    def checks_of(self) -> dict[int, list[Check]]:
        """The checks that found something, by picture; pictures without any are left out."""
        checks: dict[int, list[Check]] = {}
        for found in self.findings:
            for index in found.indices.tolist():
                checks.setdefault(index, []).append(found.check)
        return checks

    def finding(self, key: str) -> Finding | None:
        return next((found for found in self.findings if found.check.key == key), None)

    @cached_property
    def dirty(self) -> NDArray[np.bool_]:
        """(N,): pictures with dirt of any kind, and those that cannot be read."""
        mask = np.zeros(len(self), bool)
        for found in self.findings:
            if found.check.kind == "dirt":
                mask[found.indices] = True
        mask[[row["index"] for row in self.unreadable]] = True
        return mask

    @property
    def usable(self) -> bool:
        """Whether training with this audit has a picture to use."""
        return bool(np.isfinite(self.usable_from).any())

    def clean_names(self) -> list[str]:
        """Pictures without dirt that are no copy of another."""
        kept = ~self.dirty & ~self.left_out
        return [self.names[index] for index in np.flatnonzero(kept).tolist()]

    # ---------------------------------------------------------------- what training does with it

    @cached_property
    def level(self) -> NDArray[np.float64]:
        """(N,): standard deviation of each picture's noise in [-1, 1], at the size of training."""
        level = np.zeros(len(self))
        found = self.finding("noise")
        if found is not None:
            remains = np.nan_to_num(self.columns["remains"][found.indices], nan=1.0)
            level[found.indices] = 2 * found.values * remains
        return level

    @cached_property
    def usable_from(self) -> NDArray[np.float64]:
        """(N,): the least noise level at which a picture should be used, in units of [-1, 1].

        A picture with noise is used above it. What the spectrum shows is hidden by the level at
        which the mean spectra of these and of the clean pictures cannot be told apart. A picture
        with a wrong part, and a copy of another, is never used.
        """
        least = self.level.copy()
        for found in self.findings:
            key = found.check.key
            if key in BY_SPECTRUM:
                least[found.indices] = np.maximum(
                    least[found.indices], self._hidden_from(found.indices)
                )
            elif key in NEVER_USED:
                least[found.indices] = inf
        least[self.left_out] = inf
        return least

    @cached_property
    def left_out(self) -> NDArray[np.bool_]:
        """(N,): pictures that training leaves out: copies of another, and unreadable ones."""
        mask = self.first_copy != np.arange(len(self))
        mask[[row["index"] for row in self.unreadable]] = True
        return mask

    def _hidden_from(self, indices: NDArray[np.int64]) -> float:
        """Infinity where too few clean pictures are left to compare with."""
        clean = np.flatnonzero(~self.dirty)
        if len(clean) < FEWEST_CLEAN:
            return inf
        ours, theirs = self.power[clean].mean(0), self.power[indices].mean(0)
        bands = np.arange(len(ours))
        side = float(np.median(np.minimum(self.columns["width"], self.columns["height"])[indices]))
        side = min(side, self.size or inf)
        counts = (2 * bands + 1) / len(bands) ** 2 * side**2  # frequencies of each band
        for level in LADDER:
            ratio = (theirs + level**2) / (ours + level**2)
            divergence = 0.25 * (counts * (ratio - 1 - np.log(ratio))).sum()
            if divergence < HIDDEN_DIVERGENCE:
                return float(f"{level:.2g}")
        return inf

    # ---------------------------------------------------------------- as files

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each picture, as `--audit` reads them: "index", "name", "level",
        "usable_from", "flagged", "tags", "exclude", "found" and what was measured."""
        bad = {row["index"]: row["reason"] for row in self.unreadable}
        for index, name in enumerate(self.names):
            measured = {
                key: rounded(float(values[index]))
                for key, values in self.columns.items()
                if not isnan(values[index])
            }
            row = {
                "index": index,
                "name": name,
                "level": rounded(float(self.level[index])),
                "usable_from": rounded(float(self.usable_from[index])),
                "flagged": bool(self.usable_from[index] > 0),
                "exclude": bool(self.left_out[index]),
                "tags": [check.tag for check in self.checks_of.get(index, []) if check.tag],
                "found": [check.key for check in self.checks_of.get(index, [])],
                "measured": measured,
            }
            if index in bad:
                row["unreadable"] = bad[index]
            if self.first_copy[index] != index:
                row["copy_of"] = self.names[self.first_copy[index]]
            yield row

    def summary(self) -> dict[str, Any]:
        """Numbers for scripts."""
        return {
            "data": self.spec,
            "pictures": len(self),
            "unreadable": len(self.unreadable),
            "refused": len(self.refused),
            "ignored": self.ignored,
            "dirty": int(self.dirty.sum()),
            "size": self.size,
            "findings": {
                found.check.key: {
                    "count": len(found),
                    "share": round(found.share, 4),
                    "worst": rounded(float(found.values[0])),
                    "threshold": found.check.threshold,
                }
                for found in self.findings
            },
            "not_measured": self.not_measured,
            "verdict": self.verdict(),
        }

    def verdict(self) -> str:
        """One sentence: how much of what, and what to do."""
        total = len(self)
        if total == len(self.unreadable):
            return f"None of the {total:,} pictures can be read."
        of_kind = {kind: self._largest(kind) for kind in ("dirt", *OTHER)}
        most = [*of_kind["dirt"][:MENTIONED], *(of_kind[k][0] for k in OTHER if of_kind[k])]
        parts = [f"{len(found):,} {found.check.title}" for found in most]
        if self.unreadable:
            parts.append(f"{len(self.unreadable):,} unreadable")
        if not parts:
            return f"These checks found nothing wrong with the {total:,} pictures."
        return f"Of {total:,} pictures {_joined(parts)}: {self._advice()}."

    def _largest(self, kind: str) -> list[Finding]:
        own = [found for found in self.findings if found.check.kind == kind]
        return sorted(own, key=len, reverse=True)

    def _advice(self) -> str:
        no_noise = any(found.check.key in (*BY_SPECTRUM, *NEVER_USED) for found in self.findings)
        if no_noise and self.dirty.mean() > MUCH:
            return (
                "train with --objective audited and --trusted, some 50 pictures that you vouch for"
            )
        if not self.usable:
            return "no picture can be used as it is; give some trusted ones (--trusted)"
        if self.dirty.any():
            return "train with --audit and --objective ambient"
        if self._largest("copy"):
            return "train with --audit, which leaves the copies out"
        return "see below what to do about each"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def remaining_noise(width: NDArray, height: NDArray, size: int | None) -> NDArray[np.float32]:
    """Which share of a picture's noise is left at the size of training, (N,).

    A reduction by the factor r averages white noise with a triangle of r pixels to each side, whose
    squared weights sum to 2 / (3 r) in each direction.
    """
    if size is None:
        return np.ones(len(width), np.float32)
    factor = np.maximum(np.minimum(width, height) / size, 1.0)
    return np.where(factor > 1, np.minimum(1.0, 2 / (3 * factor)), 1.0).astype(np.float32)
