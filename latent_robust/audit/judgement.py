"""What trusted samples say about the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .levels import rounded

# A cluster vanishes if less than this share of what is kept elsewhere is kept of it.
VANISHED = 0.2


@dataclass(frozen=True)
class Judgement:
    """The answer of judge.py for N samples.

    scores: (N,), higher for samples like the trusted ones. dirty: (N,), bool. weights: (N,), how
    far each counted as trusted in the last round. judge: the name of the one that was taken, None
    if none can tell. areas: of each judge, trusted against other samples.
    """

    scores: Tensor
    dirty: Tensor
    weights: Tensor
    judge: str | None
    areas: Mapping[str, float]


@dataclass(frozen=True)
class Cluster:
    """samples: how many there are, without the trusted ones; kept: how many of them are used at
    every noise level; example: index of the sample nearest to its middle."""

    samples: int
    kept: int
    example: int


@dataclass(frozen=True)
class ByTrusted:
    """What an audit gains from trusted samples.

    trusted: (N,), bool. noise_believed: whether the noise audit spared them. judged: indices of the
    samples that were judged by their likeness. judgement: of these, None if there was none to
    judge. hidden_from: the noise level that hides the dirt. clusters: of all other samples.
    """

    trusted: Tensor
    noise_believed: bool
    judged: Tensor
    judgement: Judgement | None
    hidden_from: float
    clusters: Sequence[Cluster]

    def summary(self) -> str:
        lines = []
        if not self.noise_believed:
            lines.append(
                "the auditor takes trusted samples for noisy ones: its noise levels are not used"
            )
        judgement = self.judgement
        if judgement is not None:
            areas = ", ".join(f"{name} {area:.2f}" for name, area in judgement.areas.items())
            if judgement.judge is None:
                lines.append(
                    f"cannot tell trusted from other samples ({areas}; 0.5 is chance): none is "
                    "left out"
                )
            else:
                others = len(self.judged) - int(self.trusted.sum())
                lines.append(
                    f"{int(judgement.dirty.sum()):,} of {others:,} samples are unlike the "
                    f"{int(self.trusted.sum())} trusted ones, by {judgement.judge} ({areas}; 0.5 "
                    f"is chance); used {_from(self.hidden_from)}"
                )
        for cluster in self.vanished():
            lines.append(
                f"of {cluster.samples:,} similar samples only {cluster.kept} are kept: do the "
                f"trusted ones lack their kind? See sample {cluster.example} of the audit"
            )
        return "\n".join(lines)

    def vanished(self) -> list[Cluster]:
        """Clusters of which hardly anything is kept, though much is kept elsewhere."""
        samples = sum(cluster.samples for cluster in self.clusters)
        kept = sum(cluster.kept for cluster in self.clusters)
        share = VANISHED * kept / max(1, samples)
        return [c for c in self.clusters if c.kept < share * c.samples]

    def columns(self) -> dict[str, list]:
        """What the rows of the audit gain: "trusted", and "likeness", None where it was not
        judged."""
        likeness: list[float | str | None] = [None] * len(self.trusted)
        if self.judgement is not None:
            pairs = zip(self.judged.tolist(), self.judgement.scores.tolist(), strict=True)
            for index, score in pairs:
                likeness[index] = rounded(score)
        return {"trusted": self.trusted.tolist(), "likeness": likeness}


def _from(level: float) -> str:
    return "at no noise level" if level == torch.inf else f"from noise level {level:g} on"
