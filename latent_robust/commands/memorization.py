"""`latent-robust memorization`: do pixel runs copy their training images?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latent_robust.files import write_json

from .stress import add_stress_options, check_stress_options, open_runs

if TYPE_CHECKING:
    from torch import Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    add_stress_options(parser, samples=1000)
    parser.add_argument(
        "--originals",
        action="store_true",
        help="compare with the training images before the run contaminated them",
    )


def check(options: argparse.Namespace) -> None:
    check_stress_options(options)


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.memorization import (
        memorization,
        own_similarity,
        save_similarity_figure,
    )
    from latent_robust.evaluation.metrics import nearest_similarity
    from pixel.finished import generate, seen_and_unseen

    runs, extractors = open_runs(options)
    results: dict[str, dict] = {}
    panels: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for path, tested in runs:
        generated = generate(
            path, tested.config, options.samples, seed=options.seed, device=options.device
        )
        training, unseen = seen_and_unseen(
            tested.config, originals=options.originals, offline=options.offline
        )
        for extractor in extractors:
            features, train_features = extractor(generated), extractor(training)
            unseen_features = None if unseen is None else extractor(unseen)
            results.setdefault(tested.name, {})[extractor.name] = memorization(
                features, train_features, unseen_features
            )
            panels.setdefault(extractor.name, {})[tested.name] = (
                own_similarity(train_features),
                nearest_similarity(features, train_features),
            )
    facts = {name: getattr(options, name) for name in ("originals", "samples", "seed")}
    write_json(options.out, {**facts, "runs": results})
    save_similarity_figure(panels, options.out.with_suffix(".png"))
    for name, spaces in results.items():
        for space, result in spaces.items():
            print(f"{name}: {result['near_duplicates']:.1%} near-duplicates ({space})")
    return 0
