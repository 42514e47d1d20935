"""`latent-robust evaluate`: compare the images of a run, or of a dataset, with clean images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.data.sources.spec import FORMS, IMAGE_FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.files import write_json

from .options import (
    CHANNELS,
    DETAILS,
    IMAGES_HELP,
    NEED,
    add_channels,
    add_common,
    add_features,
    add_max_bad_fraction,
    add_sampling,
    positive,
    refuse_options,
)
from .run_kinds import finished, generate, is_run

if TYPE_CHECKING:
    from torch import Tensor

    from latent_robust.evaluation.runs import Run


SUMMARY = "measure how far the images of a run, or of a dataset, are from clean images"
USAGE = "RUN|DATA [options]"
EXAMPLES = """\
examples:
  latent-robust evaluate runs/mine --reference CLEAN_DIR
  latent-robust evaluate DIR --reference CLEAN_DIR --size 32
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    need.add_argument(
        "images",
        metavar="RUN|DATA",
        help="a run directory, whose model then generates images, or a dataset of images",
    )
    need.add_argument(
        "--reference",
        metavar="DATA",
        help=f"clean images: {IMAGES_HELP} (default: the run's data before contamination)",
    )
    need.add_argument(
        "--samples",
        type=positive,
        default=2000,
        metavar="N",
        help="images to generate, or to take evenly spaced from the dataset (default: 2000)",
    )
    add_features(need, "the run's, or pixels")
    need.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file for the result (default: print it)"
    )
    add_sampling(parser)
    details = parser.add_argument_group(DETAILS)
    details.add_argument(
        "--size", type=int, metavar="N", help="datasets: crop and resize to N x N pixels"
    )
    add_channels(details, "datasets")
    add_max_bad_fraction(details)
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    options.is_run = is_run(Path(options.images))
    if options.is_run:
        refuse_options(options, ("size", "channels"), "is the run's own: leave it out")
    else:
        try:
            parse_spec(options.images, IMAGE_FORMS)
        except InputError as error:
            raise InputError(f"{error}; a run is the directory of a training") from error
        refuse_options(
            options, ("steps", "sampler", "stop_at"), "is for runs, which generate images"
        )
        if options.size is None or options.reference is None:
            raise InputError(
                f"{options.images} is a dataset, not a run directory (it has no config.yaml): give "
                "--reference and --size as well"
            )
    if options.reference is not None:
        parse_spec(options.reference, FORMS)


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.features import make_extractors
    from latent_robust.evaluation.metrics import REFERENCE, evaluate
    from latent_robust.evaluation.runs import read_runs

    path = Path(options.images)
    evaluated = read_runs([path])[0] if options.is_run else None
    config = evaluated.config if evaluated else {}
    features = options.features.split(",") if options.features else config.get("features")
    extractors = make_extractors(
        features or ["pixels"],
        device=options.device,
        weights=options.weights or config.get("weights"),
        offline=options.offline,
    )
    count = max(REFERENCE, options.samples)
    if evaluated is None:
        clean = _images(options, options.reference, options, count)
        samples = _images(options, options.images, options, options.samples)
    else:
        clean = _clean_images(evaluated, options, count)
        _warn_if_dirty(evaluated, options)
        samples = generate(path, evaluated, options.samples, options)
    metrics = evaluate(samples, clean, extractors, seed=options.seed)
    if options.out is None:
        print(json.dumps(metrics, indent=2))
    else:
        write_json(options.out, metrics)
    return 0


def _clean_images(evaluated: Run, options: argparse.Namespace, count: int) -> Tensor:
    """The images of --reference at the run's size, or those that the run was measured against."""
    if options.reference is None:
        return finished(evaluated).clean_images(evaluated.config, count, offline=options.offline)
    config = evaluated.config
    run_size = argparse.Namespace(
        size=config.get("size") or config.get("resolution"),
        channels=config.get("channels", CHANNELS),
    )
    return _images(options, options.reference, run_size, count)


def _warn_if_dirty(evaluated: Run, options: argparse.Namespace) -> None:
    config = evaluated.config
    if not (options.reference or config.get("reference")) and config["contamination"] == "none":
        print(
            f"warning: {options.images} has no clean images to compare with, so it is compared "
            "with its own training images, noise included; give --reference DATA",
            file=sys.stderr,
        )


def _images(
    options: argparse.Namespace, spec: str, shape: argparse.Namespace, count: int
) -> Tensor:
    """At most `count` images, evenly spaced.  =>  (N, C, size, size). shape: has `size` and
    `channels`."""
    from latent_robust.data import ContaminatedImages, open_images

    images = open_images(
        spec,
        size=shape.size,
        channels=shape.channels or CHANNELS,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )
    return ContaminatedImages(images, [], 0).clean_tensor(count)
