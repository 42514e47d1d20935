"""`latent-robust report`: one HTML page that compares runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import MORE, NEED, add_help_and_version
from .run_kinds import check_runs

SUMMARY = "write one HTML page that compares runs"
USAGE = "RUN [RUN ...] [options]"
EXAMPLES = """\
examples:
  latent-robust report runs/plain runs/robust --out comparison.html
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    need.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    need.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="HTML file to write (default: report.html)",
    )
    need.add_argument(
        "--title", metavar="TEXT", help="heading of the page (default: names of the data)"
    )
    add_help_and_version(parser.add_argument_group(MORE))


def check(options: argparse.Namespace) -> None:
    check_runs(options.runs)


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.report import write_report

    print(f"report: {write_report(options.runs, options.out, title=options.title)}")
    return 0
