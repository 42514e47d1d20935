"""`latent-robust memorization`: do pixel runs copy their training images?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latent_robust.files import write_json

from .options import add_common
from .stress import USAGE as USAGE
from .stress import add_stress_options, check_stress_options, open_runs

if TYPE_CHECKING:
    from torch import Tensor

SUMMARY = "measure how often pixel runs copy their training images"
EXAMPLES = """\
examples:
  latent-robust memorization runs/plain runs/robust --out copies.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = add_stress_options(parser, samples=1000)
    need.add_argument(
        "--originals",
        action="store_true",
        help="compare with the training images before their contamination",
    )
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    check_stress_options(options)


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.memorization import (
        memorization,
        own_similarity,
        save_similarity_figure,
    )
    from latent_robust.evaluation.metrics import nearest_similarity
    from pixel.finished import generate, training_and_held_out

    runs, extractors = open_runs(options)
    results: dict[str, dict] = {}
    panels: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for path, tested in runs:
        generated = generate(
            path, tested.config, options.samples, seed=options.seed, device=options.device
        )
        training, held_out = training_and_held_out(
            tested.config, originals=options.originals, offline=options.offline
        )
        for extractor in extractors:
            features, train_features = extractor(generated), extractor(training)
            held_out_features = None if held_out is None else extractor(held_out)
            results.setdefault(tested.name, {})[extractor.name] = memorization(
                features, train_features, held_out_features
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
            share = result["near_duplicates"]
            print(
                f"{name}: {share:.1%} of the generated images are near-duplicates of training "
                f"images (features: {space}; about 1 % by chance)"
            )
    return 0
