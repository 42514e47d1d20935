"""`latent-robust sample`: generate images from a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import NEED, add_common, add_sampling, positive
from .run_kinds import check_runs, generate

SUMMARY = "generate images from a finished run"
USAGE = "RUN --out FILE [options]"
EXAMPLES = """\
examples:
  latent-robust sample runs/mine --out samples.png
  latent-robust sample runs/lora --out cats.png --count 9 --prompt "a cat on a sofa"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    need.add_argument("run_directory", type=Path, metavar="RUN", help="directory of a finished run")
    need.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="PNG file for a grid of the images"
    )
    need.add_argument(
        "--count", type=positive, default=64, metavar="N", help="number of images (default: 64)"
    )
    need.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="latent runs: caption to generate; may be repeated (default: captions of the data)",
    )
    sampling = add_sampling(parser)
    sampling.add_argument(
        "--guidance",
        type=float,
        metavar="X",
        help="latent runs: scale of the classifier-free guidance (default: the run's)",
    )
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    check_runs([options.run_directory])


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.figures import save_grid
    from latent_robust.evaluation.runs import read_runs

    path = options.run_directory
    (finished,) = read_runs([path])
    save_grid(generate(path, finished, options.count, options), options.out)
    print(f"{options.count} images: {options.out}")
    return 0
