"""Audit samples by a few that the user vouches for.

First comes the noise: scoring.py finds noisy samples and their levels. It is believed only if it
spares the trusted samples; an auditor that takes sharp images for noisy ones is not. The samples
without noise are then judged by their likeness to the trusted ones (judge.py). Those unlike them
are used at noise levels that hide the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from latent_robust.subset import evenly_spaced

from .judge import FeatureJudge, View, area, judge_samples
from .judge_network import DetailJudge, Load
from .judgement import ByTrusted, Cluster, Judgement
from .result import Audit

# The noise audit is not believed if it flags more than this share of the trusted samples.
MOST_FLAGGED = 0.1
# A noise level hides a difference if the area of one noisy view is below this.
HIDDEN = 0.6
LADDER = (0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.2, 3.3, 5.0)
PROBE = 512  # dirty samples that the search for this level looks at
CLUSTERS = 10
CLUSTER_LEVEL = 0.2  # noise level of the features that clusters are made of


def audit_by_trusted(
    audit: Audit, trusted: Sequence[int], view: View, load: Load, seed: int
) -> Audit:
    """The audit, with the judgement of the samples in which it found no noise.

    audit: of the noise. trusted: indices. view: hidden features of the auditor. load: the samples.
    """
    mask = torch.zeros(len(audit.scores), dtype=torch.bool)
    mask[list(trusted)] = True
    noisy = (audit.levels > 0).any(1)
    believed = noisy[mask].double().mean() <= MOST_FLAGGED
    levels = torch.where(believed & ~mask[:, None], audit.levels, torch.zeros(()))
    noisy = (levels > 0).any(1)
    judged = (~noisy).nonzero().flatten()
    usable_from = levels.amax(1)
    judgement, least = None, 0.0
    if len(judged) > len(trusted):
        within = mask[judged]
        judges: dict[str, FeatureJudge | DetailJudge] = {
            "features": FeatureJudge(lambda s, n, i: view(s, n, judged[i]), within, seed),
            "details": DetailJudge(lambda i: load(judged[i]), within, seed),
        }
        judgement = judge_samples(judges, within)
        if judgement.judge is not None and judgement.dirty.any():
            least = hidden_from(judges[judgement.judge], judgement, within)
            usable_from[judged[judgement.dirty]] = least
    found = clusters(view, usable_from == 0, mask, seed)
    by_trusted = ByTrusted(mask, bool(believed), judged, judgement, least, found)
    return replace(audit, levels=levels, usable_from=usable_from, by_trusted=by_trusted)


def hidden_from(judge: FeatureJudge | DetailJudge, judgement: Judgement, trusted: Tensor) -> float:
    """The lowest noise level at which one noisy view does not show which samples are dirty, or
    infinity."""
    dirty = judgement.dirty.nonzero().flatten()
    dirty = dirty[evenly_spaced(len(dirty), PROBE)]
    chosen = torch.cat([trusted.nonzero().flatten(), dirty])
    positive = int(trusted.sum())
    for level in LADDER:
        scores = judge.at(level, judgement.weights, chosen)
        areas = [area(one[:positive], one[positive:]) for one in scores]
        if sum(areas) / len(areas) < HIDDEN:
            return level
    return inf


def clusters(view: View, clean: Tensor, trusted: Tensor, seed: int) -> list[Cluster]:
    """Clusters of the samples by their features, the largest first: is any of them left out?"""
    from sklearn.cluster import KMeans

    others = (~trusted).nonzero().flatten()
    features = view(CLUSTER_LEVEL, 0, others)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    means = KMeans(min(CLUSTERS, len(others)), n_init=1, random_state=seed).fit(features.numpy())
    nearest = torch.from_numpy(means.transform(features.numpy()))
    labels = torch.from_numpy(means.labels_).long()
    found = []
    for number in labels.unique().tolist():
        members = (labels == number).nonzero().flatten()
        example = members[nearest[members, number].argmin()]
        kept = int(clean[others[members]].sum())
        found.append(Cluster(len(members), kept, int(others[example])))
    return sorted(found, key=lambda cluster: -cluster.samples)
