"""`latent-robust report`: one page that compares runs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html"
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")


def check(options: argparse.Namespace) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.report import write_report

    print(f"report: {write_report(options.runs, options.out, title=options.title)}")
    return 0
