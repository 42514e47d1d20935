"""`latent-robust sample`: generate images from a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_common, add_sampling, positive
from .run_kinds import generate


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a PNG file for the grid"
    )
    parser.add_argument(
        "--count", type=positive, default=64, metavar="N", help="images (default: 64)"
    )
    add_sampling(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="latent runs; may be repeated"
    )
    parser.add_argument(
        "--guidance", type=float, metavar="X", help="latent runs (default: the run's)"
    )
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.figures import save_grid
    from latent_robust.evaluation.runs import read_runs

    path = options.run_directory
    (finished,) = read_runs([path])
    save_grid(generate(path, finished, options.count, options), options.out)
    print(f"{options.count} images are in {options.out}")
    return 0
