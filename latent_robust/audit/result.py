"""The result of an audit: scores and noise levels, their summary, file and quality."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_robust.core import Levels
from latent_robust.files import write_jsonl

from .bimodality import is_bimodal
from .captions import CaptionAudit
from .judge import area
from .judgement import ByTrusted
from .levels import root_mean_square, rounded


@dataclass(frozen=True)
class Audit:
    """What an audit says about N samples.

    scores: (N,), mean squared error of the auditor's reconstruction; levels: (N, C), standard
    deviation of the noise in each channel, in units of the samples, 0 for a clean sample; noise:
    the noise level s = sigma / alpha at which the scores were taken; separation: Otsu's criterion
    of the log scores, in [0, 1].

    told: whether scores and spectrum agree; if not, no sample counts as noisy.
    usable_from: (N,), the least noise level at which a sample is used; None: its own level.
    by_trusted: what trusted samples add (trusted.py), None without any. captions: which captions do
    not fit (captions.py), None if that was not asked.
    """

    scores: Tensor
    levels: Tensor
    noise: float
    separation: float
    told: bool = True
    usable_from: Tensor | None = None
    by_trusted: ByTrusted | None = None
    captions: CaptionAudit | None = None

    @property
    def flagged(self) -> Tensor:
        """(N,), bool: which samples are not used at every noise level."""
        return self._least > 0

    @property
    def _least(self) -> Tensor:
        """(N,), `usable_from` as training takes it: never below a sample's own level."""
        return Levels(self.levels, self.usable_from).usable_from

    @property
    def bimodal(self) -> bool:
        """Whether the scores form two groups, clean and dirty."""
        return is_bimodal(self.separation, len(self.scores))

    def summary(self) -> str:
        if not self.told:
            text = (
                "cannot tell which samples are noisy: the auditor takes more for noise than the "
                "images show. No sample is left out; some trusted images (--trusted) would help"
            )
            return "\n".join([text, *(part.summary() for part in self._parts())])
        levels = root_mean_square(self.levels)
        dirty = levels > 0
        text = f"{int(dirty.sum()):,} of {len(dirty):,} samples are noisy"
        if dirty.any():
            quantiles = torch.tensor([0.05, 0.5, 0.95])
            low, median, high = levels[dirty].quantile(quantiles).tolist()
            text += f" (median level {median:.3f}, 90 % are from {low:.3f} to {high:.3f})"
        groups = "two groups" if self.bimodal else "one group"
        text += f"; scores at noise level {self.noise} form {groups} (separation "
        text += f"{self.separation:.2f} of 1)"
        return "\n".join([text, *(part.summary() for part in self._parts())])

    def _parts(self) -> list[ByTrusted | CaptionAudit]:
        return [part for part in (self.by_trusted, self.captions) if part is not None]

    def rows(self, name: Callable[[int], str]) -> Iterator[dict[str, Any]]:
        """Rows {"index", "name", "score", "level", "usable_from", "flagged"}. name: index => name
        of a sample.

        `level` is a number, or a list if there are several channels; `flagged` is true for a
        sample that is not used at every noise level. Trusted samples and captions add columns
        (`ByTrusted.columns`, `CaptionAudit.columns`).
        """
        columns = zip(self.scores.tolist(), self.levels.tolist(), self._least.tolist(), strict=True)
        more = {key: column for part in self._parts() for key, column in part.columns().items()}
        for index, (score, levels, least) in enumerate(columns):
            numbers = [rounded(level) for level in levels]
            yield {
                "index": index,
                "name": name(index),
                "score": rounded(score),
                "level": numbers if len(numbers) > 1 else numbers[0],
                "usable_from": rounded(least),
                "flagged": least > 0,
                **{key: column[index] for key, column in more.items()},
            }

    def write(self, path: str | Path, name: Callable[[int], str]) -> None:
        """Write `rows(name)` as JSON lines, which `--levels` reads; completely or not at all."""
        write_jsonl(self.rows(name), path)


def audit_facts(path: Path, dirty: Tensor | None) -> dict[str, Any]:
    """Numbers about a written audit, for metrics.json.

    path: a file that `Audit.write` wrote; dirty: (N,), bool, which samples are really dirty, or
    None if that is unknown. Returns the number of samples, how many are flagged, and their median
    level. With `dirty` also the two kinds of mistakes and the area under the scores' ROC curve.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    flagged = torch.tensor([row["flagged"] for row in rows])
    levels = root_mean_square(torch.tensor([row["level"] for row in rows]).view(len(rows), -1))
    facts = {
        "samples": len(rows),
        "flagged": int(flagged.sum()),
        "level": round(float(levels[flagged].median()), 4) if flagged.any() else 0.0,
    }
    if dirty is None:
        return facts
    facts["clean_but_flagged"] = int((~dirty & flagged).sum())
    facts["dirty_but_kept"] = int((dirty & ~flagged).sum())
    if dirty.any() and not dirty.all():
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        facts["roc_auc"] = round(area(scores[dirty], scores[~dirty]), 4)
    if any(row.get("trusted") for row in rows):
        facts.update(_facts_of_likeness(rows, dirty))
    return facts


def _facts_of_likeness(rows: list[dict], dirty: Tensor) -> dict[str, Any]:
    """What trusted samples tell: the noise level that hides the dirt, and the area under the ROC
    curve of clean against dirty samples."""
    facts: dict[str, Any] = {"trusted": sum(row["trusted"] for row in rows)}
    judged = [i for i, row in enumerate(rows) if row["likeness"] is not None]
    hidden = [rows[i]["usable_from"] for i in judged if rows[i]["flagged"]]
    if hidden:
        facts["hidden_from"] = hidden[0]
    others = torch.tensor([i for i in judged if not rows[i]["trusted"]], dtype=torch.long)
    likeness = torch.tensor([rows[i]["likeness"] for i in others.tolist()])
    truth = dirty[others]
    if truth.any() and not truth.all():
        facts["likeness_area"] = round(area(likeness[~truth], likeness[truth]), 4)
    return facts
