"""Judge samples by a few that the user vouches for: does each look as the trusted ones do?

Two judges answer, each by a score, higher for samples like the trusted ones:

- "features": a linear discriminant on the hidden features of a denoiser that was trained on all
  samples. It knows what the data share, and sees all that changes an image as a whole.
- "details": a small convolutional network. It sees local dirt at random places.

A sample is always judged by a fit that has not seen it (cross-fitting). So the area under the ROC
curve of trusted against other samples is honest, and needs no labels: the judge with the larger
area is taken. If no area differs from a half, the judges cannot tell the two apart: either all
samples are clean, or they do not see the dirt. Then nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from latent_robust.core import derive_generator

from .judgement import Judgement

Judge = Callable[[Tensor], Tensor]  # weights (N,), 1 for trusted => scores (N,)
# noise level, number of the view, indices (n,) => features (n, D)
View = Callable[[float, int, Tensor], Tensor]

# Noise levels at which samples are compared, in units of the samples, and views of each sample at
# each level. Measured on digits: four levels with two views cost four times as much and judge alike
# (area 0.992 instead of 0.991 for JPEG, 1 and 1 for blur); one level is worse (0.969).
NOISE_LEVELS = (0.05, 0.2)
VIEWS = 1
FOLDS = 5
SHRINKAGE = 0.8  # share of the identity in the covariance of the standardized features
# More features are projected at random: a covariance of 15,000 takes 2 GB. So are those of so many
# samples that their features would exceed MOST_VALUES.
MOST_FEATURES = 1024
MOST_VALUES = 2**28
ROUNDS = 2
REFINEMENTS = 10  # of the threshold
# The largest of two areas that are a half exceeds it by this many standard errors in 1 % of cases.
SURE = 2.6


def judge_samples(judges: Mapping[str, Judge], trusted: Tensor) -> Judgement:
    """trusted: (N,), bool."""
    weights = trusted.float()
    first = {name: judge(weights) for name, judge in judges.items()}
    areas = {name: area(scores[trusted], scores[~trusted]) for name, scores in first.items()}
    best = max(areas, key=areas.__getitem__)
    if areas[best] <= least_area(int(trusted.sum()), int((~trusted).sum())):
        return Judgement(first[best], torch.zeros_like(trusted), weights, None, areas)
    scores = first[best]
    for _ in range(ROUNDS - 1):
        weights = as_trusted(scores, trusted)
        scores = judges[best](weights)
    dirty = decide(scores, trusted, dirty_share(first[best], trusted))
    return Judgement(scores, dirty, weights, best, areas)


def at_each_level(at: Callable[[float, Tensor, Tensor], Tensor], weights: Tensor) -> Tensor:
    """Scores (L, N) of all samples, the mean over their views. at: a judge's; see FeatureJudge."""
    everything = torch.arange(len(weights))
    return torch.stack([at(level, weights, everything).mean(0) for level in NOISE_LEVELS])


def area(higher: Tensor, lower: Tensor) -> float:
    """Area under the ROC curve: how often a score of `higher` exceeds one of `lower`."""
    ordered = lower.sort().values
    below = torch.searchsorted(ordered, higher).double()
    not_above = torch.searchsorted(ordered, higher, right=True).double()
    return float((below + not_above).mean() / (2 * len(lower)))


def least_area(trusted: int, others: int) -> float:
    """The area that two samples of one distribution rarely exceed (Mann and Whitney 1947)."""
    return 0.5 + SURE * sqrt((trusted + others + 1) / (12 * trusted * others))


def as_trusted(scores: Tensor, trusted: Tensor) -> Tensor:
    """How far each sample counts as trusted in the next round, (N,): as far as it looks so."""
    weights = (scores - scores[trusted].median()).clamp_max(0).exp()
    return weights.masked_fill(trusted, 1.0)


def dirty_share(scores: Tensor, trusted: Tensor) -> float:
    """The estimated share of dirty samples among those that are not trusted, in [0, 1].

    Half of the clean samples score above the median of the trusted ones, and hardly any dirty one.
    scores: of the first round. Later ones lift the trusted samples above other clean ones.
    """
    above = scores[~trusted] > scores[trusted].median()
    return max(0.0, 1 - 2 * float(above.double().mean()))


def decide(scores: Tensor, trusted: Tensor, share: float) -> Tensor:
    """=>  which samples are dirty, (N,). share: of them, among those that are not trusted.

    The threshold is halfway between the medians of the trusted and of the dirty samples.
    """
    if share == 0:
        return torch.zeros_like(trusted)
    others, middle = scores[~trusted], scores[trusted].median()
    threshold = (middle + others.quantile(share / 2)) / 2
    for _ in range(REFINEMENTS):
        below = others[others < threshold]
        if len(below) == 0:
            break
        threshold = (middle + below.median()) / 2
    return (scores < threshold) & ~trusted


# ------------------------------------------------------------------ the judge of features


@dataclass
class FeatureJudge:
    """A shrunken linear discriminant, in closed form. view: of the denoiser's features;
    trusted: (N,), bool, which samples the user vouches for."""

    view: View
    trusted: Tensor
    seed: int = 0
    _views: dict[float, Tensor] = field(default_factory=dict)

    def __call__(self, weights: Tensor) -> Tensor:
        return at_each_level(self.at, weights).sum(0)

    def at(self, noise_level: float, weights: Tensor, indices: Tensor) -> Tensor:
        """Scores (V, n) of noisy views of these samples, fitted on them alone."""
        fold = folds(self.trusted[indices], self.seed, FOLDS)
        return discriminant(self._standardized(noise_level, indices), weights[indices], fold)

    def _standardized(self, noise_level: float, indices: Tensor) -> Tensor:
        """Views (V, n, D). Those of all samples are kept, since each round uses them."""
        if noise_level in self._views and len(indices) == len(self.trusted):
            return self._views[noise_level]
        views = torch.stack([self.view(noise_level, n, indices) for n in range(VIEWS)])
        views = (views - views.mean((0, 1))) / views.std((0, 1)).clamp_min(1e-6)
        most = min(MOST_FEATURES, max(1, MOST_VALUES // len(self.trusted)))
        if views.shape[2] > most:
            shape = (views.shape[2], most)
            generator = derive_generator(self.seed, "projection")
            views = views @ torch.randn(shape, generator=generator) / shape[0] ** 0.5
        if len(indices) == len(self.trusted):
            self._views[noise_level] = views
        return views


def folds(trusted: Tensor, seed: int, count: int) -> Tensor:
    """The fold of each sample, (N,), 0 .. count - 1; trusted and other samples evenly in each."""
    fold = torch.zeros(len(trusted), dtype=torch.long)
    generator = derive_generator(seed, "folds")
    for group in (trusted, ~trusted):
        indices = group.nonzero().flatten()
        order = torch.randperm(len(indices), generator=generator)
        fold[indices[order]] = torch.arange(len(indices)) % count
    return fold


def discriminant(views: Tensor, weights: Tensor, fold: Tensor) -> Tensor:
    """Scores (V, N) of a linear discriminant that was fitted without the sample's own fold.

    views: (V, N, D), standardized; weights: (N,), how far a sample counts as trusted, and the rest
    as another one. The score is the logarithm of the ratio of the two densities.
    """
    flat = views.flatten(0, 1)
    identity = torch.eye(flat.shape[1])
    covariance = (1 - SHRINKAGE) * flat.T @ flat / len(flat) + SHRINKAGE * identity
    seen = (fold[None] != torch.arange(FOLDS)[:, None]).float()  # (F, N)
    means = views.mean(0)
    positive, negative = (_weighted_means(means, seen * w) for w in (weights, 1 - weights))
    directions = torch.linalg.solve(covariance, (positive - negative).T)  # (D, F)
    offsets = ((positive + negative) * directions.T).sum(1) / 2
    scores = views @ directions - offsets  # (V, N, F)
    return scores.gather(2, fold[None, :, None].expand(len(views), -1, 1))[..., 0]


def _weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """values: (N, D); weights: (F, N).  =>  (F, D)."""
    return weights @ values / weights.sum(1, keepdim=True)
