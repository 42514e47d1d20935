"""Options and inputs that `attack` and `memorization` share.

Both compare finished pixel runs and write a JSON file, with a PNG figure of the same name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.errors import InputError

from .options import NEED, add_features, positive
from .run_kinds import check_runs

if TYPE_CHECKING:
    from latent_robust.evaluation.features import Extractor
    from latent_robust.evaluation.runs import Run

USAGE = "RUN [RUN ...] --out FILE [options]"


def add_stress_options(parser: argparse.ArgumentParser, samples: int) -> argparse._ArgumentGroup:
    """samples: default number of images per run.  =>  the group of what the command needs."""
    need = parser.add_argument_group(NEED)
    need.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="directories of finished pixel runs"
    )
    need.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON file for the results; a PNG figure of the same name is written next to it",
    )
    need.add_argument(
        "--samples",
        type=positive,
        default=samples,
        metavar="N",
        help=f"images to generate with each run (default: {samples})",
    )
    add_features(need, "the first run's")
    return need


def check_stress_options(options: argparse.Namespace) -> None:
    if options.out.suffix != ".json":
        raise InputError(
            f"--out must be a .json file, got {options.out}; the figure has the same name with .png"
        )
    check_runs(options.runs)


def open_runs(options: argparse.Namespace) -> tuple[list[tuple[Path, Run]], list[Extractor]]:
    """=>  the runs with their paths, and the feature extractors. Raises InputError for a latent
    run."""
    from latent_robust.evaluation.features import make_extractors
    from latent_robust.evaluation.runs import read_runs

    runs = read_runs(options.runs)
    for path, run in zip(options.runs, runs, strict=True):
        if run.kind != "pixel":
            raise InputError(
                f"{path} is a run of finetune-latent, but only runs of train-pixel can be tested "
                "in this way"
            )
    first = runs[0].config
    extractors = make_extractors(
        options.features.split(",") if options.features else first["features"],
        device=options.device,
        weights=options.weights or first.get("weights"),
        offline=options.offline,
    )
    return list(zip(options.runs, runs, strict=True)), extractors
