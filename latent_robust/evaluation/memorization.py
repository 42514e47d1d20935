"""Does a model copy its training images?

Each generated image is compared with its most similar training image, by the cosine in a feature
space. What counts as a copy depends on features and data, so the threshold is calibrated: a
near-duplicate is more similar to its nearest training image than 99 % of the training images are
to their nearest *other* training image. New images of the same kind exceed the threshold in about
one case of a hundred, since a training image that is left out is a new image. A far larger share
is copying. Copies within the training set raise the threshold, so remove them first.

A model that smooths, or that generates only the most common images, is nearer to all images,
whether it has seen them or not. Unseen images of the same kind (`unseen`) tell smoothing from
copying: the same shares are measured against as many of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_robust.errors import InputError
from latent_robust.files import whole_file

from .features import label
from .metrics import nearest_similarity

QUANTILE = 0.99
_SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_CHUNK = 1024


def own_similarity(features: Tensor) -> Tensor:
    """Cosine similarity of each row to the nearest *other* row: (N, D) => (N,), N >= 2."""
    if len(features) < 2:
        raise InputError(f"need at least 2 training images to compare, got {len(features)}")
    rows, similarity = F.normalize(features.double()), []
    for first in range(0, len(rows), _CHUNK):
        block = rows[first : first + _CHUNK] @ rows.T
        block.diagonal(first).fill_(-torch.inf)
        similarity.append(block.amax(1))
    return torch.cat(similarity)


def memorization(generated: Tensor, training: Tensor, unseen: Tensor | None = None) -> dict:
    """generated: features (N, D) of generated images; training: (M, D) of the training set; unseen:
    of images of the same kind that the model never saw, preferably also (M, D).

    =>  plain floats: `threshold`; `near_duplicates`, the share of generated images above it;
    `quantiles` of their similarity to the nearest training image, and `own_quantiles` of the
    training images to one another. With `unseen` also `near_duplicates_of_unseen`, and
    `nearer_to_training`: the share that is nearer to the training set than to the unseen images,
    0.5 for a model that generalizes and 1 for one that copies (a tie counts half).
    """
    similarity, own = nearest_similarity(generated, training), own_similarity(training)
    threshold = own.quantile(QUANTILE).item()
    result = {
        "threshold": threshold,
        "near_duplicates": _share(similarity > threshold),
        "quantiles": _quantiles(similarity),
        "own_quantiles": _quantiles(own),
    }
    if unseen is not None:
        other = nearest_similarity(generated, unseen)
        nearer = _share(similarity > other) + _share(similarity == other) / 2
        result["near_duplicates_of_unseen"] = _share(other > threshold)
        result["nearer_to_training"] = nearer
    return result


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _quantiles(similarity: Tensor) -> dict[str, float]:
    return {f"{q:g}": similarity.quantile(q).item() for q in _SHOWN}


def save_similarity_figure(panels: dict[str, dict[str, tuple[Tensor, Tensor]]], path: Path) -> None:
    """A PNG with one histogram for each feature space.

    panels: by feature space and run, the similarities of the training images to one another, and of
    the generated images to the training images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (space, runs) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        trained_on: list[Tensor] = []
        for own, _ in runs.values():
            if not any(torch.equal(own, other) for other in trained_on):
                trained_on.append(own)
        owns = torch.cat(trained_on)
        everything = torch.cat([owns, *(similarity for _, similarity in runs.values())])
        low = everything.quantile(0.005).item()  # a few outliers would take up most of the axis
        bins = torch.linspace(low, everything.max().item(), 41).numpy()
        style = {"bins": bins, "density": True}
        sets = "training set" if len(trained_on) == 1 else "training sets"
        axes.hist(owns.numpy(), color="0.85", label=f"{sets}, one another", **style)
        for name, (_, similarity) in runs.items():
            axes.hist(similarity.numpy(), histtype="step", linewidth=1.5, label=name, **style)
        for own in trained_on:
            threshold = own.quantile(QUANTILE).item()
            axes.axvline(threshold, color="0.3", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"cosine to the nearest training image ({label(space)})")
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
