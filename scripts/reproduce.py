#!/usr/bin/env python
"""Runs a named table of RESULTS.md, and writes its numbers into it.

    python scripts/reproduce.py digits             # all rows and seeds that are not there yet
    python scripts/reproduce.py digits --render    # only rewrite RESULTS.md from results/

A table is configs/tables/NAME.yaml: settings that all rows share, and rows of a name, seeds and
settings of their own. Each (row, seed) is one run of one thread, of `train-pixel` or of the command
that the table names; --jobs of them run at a time. A run that was stopped is resumed, a finished
one is kept: results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "RESULTS.md"
MODULES = {"train-pixel": "pixel.train", "finetune-latent": "latent_robust.latent.train"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"one of {', '.join(tables())}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--render", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.table not in tables():
        parser.error(f"no table {options.table!r}; there are {', '.join(tables())}")
    table = yaml.safe_load((ROOT / f"configs/tables/{options.table}.yaml").read_text())
    failed = 0
    if not options.render:
        failed = run_table(options.table, table, options.jobs)
    render(options.table, markdown(options.table, table))
    if "figure" in table:
        draw_figure(options.table, table)
    return min(failed, 1)


def tables() -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs/tables").glob("*.yaml"))


def settings_of(table: dict, row: dict) -> dict:
    settings = {**table.get("common", {}), **row}
    return {key: value for key, value in settings.items() if key not in ("name", "seeds")}


def run_table(name: str, table: dict, jobs: int) -> int:
    """Runs what is not there yet, or was made with other settings.  =>  how many failed."""
    have = finished(name)
    todo = [
        (row, seed)
        for row in table["rows"]
        for seed in row.get("seeds", [0])
        if have.get((row["name"], seed), {}).get("settings") != settings_of(table, row)
    ]
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(run, name, table, row, seed) for row, seed in todo]
        for future in as_completed(started):
            row, seed, saved = future.result()
            if saved is None:
                failed += 1
            else:
                record(name, table, row, seed, saved)
    return failed


def run(name: str, table: dict, row: dict, seed: int) -> tuple[dict, int, dict | None]:
    slug = re.sub(r"[^a-z0-9.]+", "-", row["name"].lower()).strip("-")
    out = ROOT / "runs" / "tables" / name / f"{slug}-seed{seed}"
    out.mkdir(parents=True, exist_ok=True)
    config = out / "settings.yaml"
    config.write_text(yaml.safe_dump(settings_of(table, row)))
    module = MODULES[table.get("command", "train-pixel")]
    command = [sys.executable, "-m", module, "--config", str(config), "--out", str(out)]
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


def record(name: str, table: dict, row: dict, seed: int, saved: dict) -> None:
    entries = finished(name)
    settings = settings_of(table, row)
    entries[row["name"], seed] = {"row": row["name"], "seed": seed, "settings": settings, **saved}
    path = ROOT / f"results/{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n")
    print(f"  done: {row['name']}, seed {seed}", flush=True)


def render(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace what stands between the table's two markers."""
    results = path.read_text()
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if begin not in results:
        print(f"{path.name} has no {begin}; nothing rewritten")
        return
    head, rest = results.split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def markdown(name: str, table: dict) -> str:
    entries = finished(name)
    measured = [e for e in entries.values() if "metrics" in e]
    if not measured:
        return ""
    first = measured[0]["metrics"]
    spaces = [k for k, v in first.items() if isinstance(v, dict) and "frechet" in v]
    columns = [(f"FD ({s})", lambda e, s=s: e["metrics"][s]["frechet"]) for s in spaces]
    columns += [(f"1000 x KD ({s})", lambda e, s=s: 1000 * e["metrics"][s]["kid"]) for s in spaces]
    columns += [
        ("residual noise", lambda e: e["metrics"]["residual_noise"]),
        ("nearest clean", lambda e: e["metrics"]["nearest_distance"]),
    ]
    if "match" in measured[0]:
        columns.append(("caption match", lambda e: e["match"]["both"] if "match" in e else None))
    titles = [title for title, _ in columns]
    lines = [f"| training | seeds | {' | '.join(titles)} |", "|---|---|" + "---|" * len(columns)]
    for row in table["rows"]:
        runs = [e for (r, _), e in entries.items() if r == row["name"]]
        if not runs:
            continue
        if any("metrics" not in e for e in runs):
            lines.append(f"| {row['name']} | {len(runs)} | diverged |" + " |" * (len(columns) - 1))
            continue
        cells = [spread([value(e) for e in runs]) for _, value in columns]
        lines.append(f"| {row['name']} | {len(runs)} | {' | '.join(cells)} |")
    # Each seed has a contaminated training set of its own; rows of a seed share it.
    floors = {e["seed"]: {"metrics": e["floors"]["training set"]} for e in measured if has_dirt(e)}
    if floors:
        cells = [spread([value(floor) for floor in floors.values()]) for _, value in columns]
        label = "*the contaminated training set itself*"
        lines.append(f"| {label} | {len(floors)} | {' | '.join(cells)} |")
    clean = first["residual_noise_reference"]
    return "\n".join(lines) + f"\n\nResidual noise of the clean pictures: {clean:.3g}."


def has_dirt(entry: dict) -> bool:
    return "floors" in entry and entry["settings"].get("contamination") != "none"


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


def spread(values: list[float | None]) -> str:
    """Mean and, for several seeds, sample standard deviation, to three significant figures."""
    if None in values:
        return "-"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    sys.exit(main())
