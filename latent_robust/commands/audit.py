"""`latent-robust audit`: score the training data of a finished run with its model."""

from __future__ import annotations

import argparse
from pathlib import Path

from latent_robust.errors import InputError

from .options import NEED, add_common
from .run_kinds import check_runs, finished

SUMMARY = "find the noisy images among the training data of a finished run"
USAGE = "RUN [options]"
EXAMPLES = """\
examples:
  latent-robust audit runs/mine
  latent-robust audit runs/mine --out levels.jsonl
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    need.add_argument("run_directory", type=Path, metavar="RUN", help="directory of a finished run")
    need.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON lines with score and noise level of each image (default: RUN/audit.jsonl)",
    )
    add_common(parser, seed=False)


def check(options: argparse.Namespace) -> None:
    check_runs([options.run_directory])
    options.out = options.out or options.run_directory / "audit.jsonl"
    if options.out.exists():
        raise InputError(f"{options.out} exists already; choose another --out")


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.runs import read_runs

    path = options.run_directory
    (auditor,) = read_runs([path])
    audit, samples = finished(auditor).audit(
        path, auditor.config, device=options.device, offline=options.offline
    )
    audit.write(options.out, samples.name)
    print(
        f"{audit.summary()}\nscores and noise levels: {options.out}\n"
        f"to train with these levels, add to the training command: --objective ambient "
        f"--levels {options.out}"
    )
    return 0
