"""`latent-robust audit`: let a finished run judge the data it was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from latent_robust.errors import InputError

from .options import add_common
from .run_kinds import finished


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a finished run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a JSONL file (default: audit.jsonl in the run)"
    )
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    options.out = options.out or options.run_directory / "audit.jsonl"
    if options.out.exists():
        raise InputError(f"{options.out} exists already; give another --out")


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.runs import read_runs

    path = options.run_directory
    (auditor,) = read_runs([path])
    audit, samples = finished(auditor).audit(
        path, auditor.config, device=options.device, offline=options.offline
    )
    audit.write(options.out, samples.name)
    print(f"{audit.summary()}\neach sample's score and level are in {options.out}")
    return 0
