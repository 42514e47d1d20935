"""`latent-robust audit`: what is wrong with a data set, or with the training data of a run."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.data.sources.spec import FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.files import write_atomically, write_json, write_jsonl

from .options import DETAILS, NEED, add_common, positive, refuse_options
from .run_kinds import finished, is_run

if TYPE_CHECKING:
    from latent_robust.audit.pictures.findings import DataAudit

SUMMARY = "find what is wrong with a data set, or which training images of a run are noisy"
USAGE = "DATA|RUN [options]"
EXAMPLES = """\
examples:
  latent-robust audit DIR --size 512                 a page to look at: DIR-audit/audit.html
  latent-robust audit DIR --write-list clean.txt     names of the pictures without dirt
  latent-robust audit DIR --fail-on 0.1              exit code 3 if more than a tenth is dirty
  latent-robust audit runs/mine                      audit by the model that was trained
"""
OF_DATA = ("size", "caption_column", "limit", "workers", "write_list", "fail_on")
TOO_DIRTY = 3  # exit code of --fail-on


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    need.add_argument(
        "audited",
        metavar="DATA|RUN",
        help=f"a folder of images, {', '.join(FORMS.values())}; or the directory of a finished run",
    )
    need.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="data: size in pixels at which you will train; blur and detail are judged there",
    )
    need.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="data: directory for audit.html, audit.jsonl and summary.json (default: DATA-audit in "
        "the working directory); runs: file for scores and levels (default: RUN/audit.jsonl)",
    )
    need.add_argument(
        "--write-list", type=Path, metavar="FILE", help="data: names of the pictures without dirt"
    )
    need.add_argument(
        "--fail-on",
        type=_limits,
        metavar="SHARE|CHECK=SHARE,...",
        help=f"data: exit with {TOO_DIRTY} if a larger share is dirty, or is found by a check",
    )
    details = parser.add_argument_group(DETAILS)
    details.add_argument(
        "--caption-column", metavar="NAME", help="data: column of the captions (default: the usual)"
    )
    details.add_argument("--limit", type=positive, metavar="N", help="data: the first N pictures")
    details.add_argument(
        "--workers", type=positive, metavar="N", help="data: processes (default: one for each core)"
    )
    add_common(parser, seed=False)


def _limits(text: str) -> dict[str, float]:
    """ "0.1"  =>  {"dirt": 0.1};  "jpeg=0.05,noise=0"  =>  {"jpeg": 0.05, "noise": 0.0}."""
    limits = {}
    for part in text.split(","):
        name, equals, share = part.rpartition("=")
        try:
            limits[name.strip() if equals else "dirt"] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"needs a share such as 0.1, or shares by check such as jpeg=0.05, got {text!r}"
            ) from None
    return limits


def check(options: argparse.Namespace) -> None:
    path = Path(options.audited)
    options.is_run = is_run(path)
    if options.is_run:
        refuse_options(options, OF_DATA, "is for data, and this is a run: leave it out")
        options.out = options.out or path / "audit.jsonl"
        if options.out.exists():
            raise InputError(f"{options.out} exists already; choose another --out")
        return
    try:
        parse_spec(options.audited, FORMS)
    except InputError as error:
        raise InputError(f"{error}; a run is the directory of a training") from error
    if options.fail_on is not None:
        _check_limits(options.fail_on)
    options.out = options.out or Path(f"{_short_name(options.audited)}-audit")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; give a directory")
    _refuse_other_audit(options.audited, options.out)


def _check_limits(limits: dict[str, float]) -> None:
    from latent_robust.audit.pictures.checks import CHECKS

    keys = ["dirt", *(one.key for one in CHECKS)]
    for name, share in limits.items():
        if name not in keys:
            raise InputError(f"--fail-on: no check {name!r}; the checks are {', '.join(keys)}")
        if not 0 <= share <= 1:
            raise InputError(f"--fail-on: a share lies in 0 .. 1, got {share:g}")


def _refuse_other_audit(spec: str, out: Path) -> None:
    """InputError if `out` has the audit of other data."""
    try:
        other = json.loads((out / "summary.json").read_text())["data"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if other != spec and Path(other).resolve() != Path(spec).resolve():
        raise InputError(f"{out} has the audit of {other}; choose another --out")


def _short_name(spec: str) -> str:
    """The end of a path or of a specification, as a file name."""
    kind, _, rest = spec.partition(":")
    last = rest if kind == "hf" else Path(rest or spec).resolve().name
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "data"


def run(options: argparse.Namespace) -> int:
    return _audit_run(options) if options.is_run else _audit_data(options)


def _audit_run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.runs import read_runs

    path = Path(options.audited)
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


def _audit_data(options: argparse.Namespace) -> int:
    from latent_robust.audit import audit_data
    from latent_robust.audit.pictures.page import write_page

    out = options.out
    audit = audit_data(
        options.audited,
        size=options.size,
        caption_column=options.caption_column,
        limit=options.limit,
        offline=options.offline,
        workers=options.workers,
        scan_file=out / "scan.jsonl",
    )
    write_jsonl(audit.rows(), out / "audit.jsonl")
    write_json(out / "summary.json", audit.summary())
    write_page(audit, out / "audit.html")
    if options.write_list is not None:
        names = "".join(f"{name}\n" for name in audit.clean_names())
        write_atomically(options.write_list, os.fsencode(names))
    print(_told(audit, out))
    too_many = _beyond(audit, options.fail_on or {})
    for line in too_many:
        print(line)
    return TOO_DIRTY if too_many else 0


def _told(audit: DataAudit, out: Path) -> str:
    lines = [audit.verdict()]
    lines += [
        f"  {len(found):>7,}  {100 * found.share:5.1f} %  {found.check.title}"
        for found in audit.findings
    ]
    if audit.unreadable:
        lines.append(f"  {len(audit.unreadable):>7,}           cannot be read")
    if audit.ignored:
        lines.append(f"  {audit.ignored:>7,}           other files, ignored")
    if audit.refused:
        lines.append(f"  {len(audit.refused):>7,}           rows or captions without a picture")
    lines += [f"not measured: {name}: {why}" for name, why in audit.not_measured.items()]
    train = f"; train with --audit {out / 'audit.jsonl'}" if audit.usable else ""
    lines.append(f"look at {out / 'audit.html'}{train}")
    return "\n".join(lines)


def _beyond(audit: DataAudit, limits: dict[str, float]) -> list[str]:
    lines = []
    for name, limit in limits.items():
        found = audit.finding(name)
        share = float(audit.dirty.mean()) if name == "dirt" else found.share if found else 0.0
        if share > limit:
            lines.append(f"--fail-on: {100 * share:.1f} % {name}, more than {100 * limit:g} %")
    return lines
