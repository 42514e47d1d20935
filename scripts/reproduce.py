#!/usr/bin/env python
"""Runs a named table of RESULTS.md, and writes its numbers into it.

    python scripts/reproduce.py digits             # all rows and seeds that are not there yet
    python scripts/reproduce.py digits --render    # only rewrite RESULTS.md from results/

A table is configs/tables/NAME.yaml: settings that all rows share, and rows of a name, seeds and
settings of their own. Each (row, seed) is one `train-pixel` run of one thread; --jobs of them run
at a time. A run that was stopped is resumed, a finished one is kept: results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "RESULTS.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"one of {', '.join(tables())}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all rows")
    options = parser.parse_args()
    if options.table not in tables():
        parser.error(f"no table {options.table!r}; there are {', '.join(tables())}")
    table = yaml.safe_load((ROOT / f"configs/tables/{options.table}.yaml").read_text())
    if not options.render:
        extra = dict(pair.split("=", 1) for pair in options.set)
        run_table(options.table, table, options.jobs, extra)
    render(options.table, table)
    if "figure" in table:
        draw_figure(options.table, table)
    return 0


def tables() -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs/tables").glob("*.yaml"))


def run_table(name: str, table: dict, jobs: int, extra: dict) -> None:
    todo = [
        (row, seed)
        for row in table["rows"]
        for seed in row.get("seeds", [0])
        if (row["name"], seed) not in finished(name)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for row, seed, saved in pool.map(lambda job: run(name, table, *job, extra), todo):
            if saved is not None:
                record(name, row, seed, saved)


def run(name: str, table: dict, row: dict, seed: int, extra: dict) -> tuple[dict, int, dict | None]:
    slug = re.sub(r"[^a-z0-9.]+", "-", row["name"].lower()).strip("-")
    out = ROOT / "runs" / "tables" / name / f"{slug}-seed{seed}"
    settings = {**table.get("common", {}), **row, **extra}
    settings = {k: v for k, v in settings.items() if k not in ("name", "seeds")}
    out.mkdir(parents=True, exist_ok=True)
    config = out / "settings.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pixel.train", "--config", str(config), "--out", str(out)]
    command += ["--seed", str(seed), "--resume"]
    print(f"{name}: {row['name']}, seed {seed}", flush=True)
    with open(out / "output.txt", "w") as output:
        code = subprocess.run(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).returncode
    if code != 0:
        print(f"  failed with exit code {code}, see {output.name}", flush=True)
        return row, seed, None
    return row, seed, json.loads((out / "metrics.json").read_text())


def finished(name: str) -> dict[tuple[str, int], dict]:
    path = ROOT / f"results/{name}.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    return {(entry["row"], entry["seed"]): entry for entry in entries}


def record(name: str, row: dict, seed: int, saved: dict) -> None:
    entries = finished(name)
    entries[row["name"], seed] = {"row": row["name"], "seed": seed, **saved}
    path = ROOT / f"results/{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n")
    print(f"  done: {row['name']}, seed {seed}", flush=True)


def render(name: str, table: dict) -> None:
    """Replace what stands between the table's two markers in RESULTS.md."""
    text = RESULTS.read_text()
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if begin not in text:
        print(f"RESULTS.md has no {begin}; nothing rewritten")
        return
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    RESULTS.write_text(f"{head}{begin}\n{markdown(name, table)}\n{end}{tail}")


def markdown(name: str, table: dict) -> str:
    entries = finished(name)
    spaces = next(
        ([k for k, v in e["metrics"].items() if isinstance(v, dict) and "frechet" in v]
         for e in entries.values()), []
    )  # fmt: skip
    columns = [(f"FD ({s})", lambda m, s=s: m[s]["frechet"]) for s in spaces]
    columns += [(f"KD ({s}) x 1000", lambda m, s=s: 1000 * m[s]["kid"]) for s in spaces[-1:]]
    columns += [
        ("residual noise", lambda m: m["residual_noise"]),
        ("nearest clean", lambda m: m["nearest_distance"]),
    ]
    lines = [
        "| training | seeds | " + " | ".join(title for title, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for row in table["rows"]:
        runs = [e for (r, _), e in entries.items() if r == row["name"]]
        if runs:
            cells = [spread([value(e["metrics"]) for e in runs]) for _, value in columns]
            lines.append(f"| {row['name']} | {len(runs)} | " + " | ".join(cells) + " |")
    dirty = [e["floors"]["training set"] for (r, _), e in entries.items() if r == "DDPM"]
    if dirty:
        cells = [spread([value(m) for m in dirty]) for _, value in columns]
        lines.append(
            f"| *the contaminated training set itself* | {len(dirty)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def draw_figure(name: str, table: dict) -> None:
    """results/NAME.png: the grids of the runs that the table's `figure` names, side by side."""
    folder = ROOT / "runs/tables" / name
    panels = {title: folder / file for title, file in table["figure"].items()}
    if not all(path.exists() for path in panels.values()):
        print(f"no figure: not all of {', '.join(map(str, panels.values()))} are there")
        return
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3 * len(panels), 3.3), layout="constrained")
    for axes, (title, path) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(Image.open(path), cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    figure.savefig(ROOT / f"results/{name}.png", dpi=100)


def spread(values: list[float]) -> str:
    """Mean and, for several seeds, sample standard deviation, to three significant figures."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    sys.exit(main())
