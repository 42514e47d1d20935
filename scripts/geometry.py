#!/usr/bin/env python
"""Train on toys whose truth is known, draw their figures, write docs/results/geometry.md's tables.

    python scripts/geometry.py              # all four toys; about a minute a run, one thread
    python scripts/geometry.py plane --seeds 0 1 2
    python scripts/geometry.py --render     # run nothing; figures and tables of what is finished
    python scripts/geometry.py --quick      # check that it runs; writes to runs/quick

An interrupted run is resumed. A finished run is in results/geometry.json and is not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from results_io import IMAGES, RESULTS, ROOT, finished, mean_std, render, table_line

from latent_robust.commands.exit_codes import INTERRUPTED, run_command
from latent_robust.files import write_json
from pixel.geometry.figures import draw_clouds, draw_fields, draw_images
from pixel.geometry.study import (
    SHOWN,
    Row,
    config_of,
    folder_of,
    rows_of,
    seeds_of,
    settings_of,
)
from pixel.geometry.task import generate_points
from pixel.geometry.toys import TOYS, make_toy
from pixel.geometry.train import load_network, train

STEPS = 3000
QUICK = {"steps": 4, "samples": 100}
CLOUD = 1500  # points in a panel, at most
COLUMNS = {
    "FD": "frechet",
    "sliced W": "sliced_wasserstein",
    "off truth": "off_truth",
    "variance kept": "variance_kept",
    "far": "far",
    "PSNR, dB": "psnr",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("toy", nargs="?", default="all", choices=[*TOYS, "all"])
    parser.add_argument("--seeds", type=int, nargs="+", help="of every row (default: its own)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['steps']} steps, seed 0")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument(
        "--results",
        type=Path,
        help="default: results, or a folder in runs with --quick or --steps",
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    given = QUICK if options.quick else {"steps": options.steps}
    seeds = [0] if options.quick else options.seeds
    usual = RESULTS if options.steps == STEPS else ROOT / f"runs/geometry-{options.steps}-steps"
    results = options.results or (ROOT / "runs/quick" if options.quick else usual)
    own = results == RESULTS
    runs = ROOT / "runs/tables/geometry" if own else results / "geometry"
    figures = IMAGES if own else results / "figures"
    for toy in TOYS if options.toy == "all" else [options.toy]:
        if not options.render and not run_toy(toy, seeds, given, runs, results / "geometry.json"):
            print("interrupted; the same command resumes", file=sys.stderr)
            return INTERRUPTED
        count = min(CLOUD, given.get("samples", CLOUD))
        draw_toy(toy, runs, given["steps"], count, figures)
        if own:
            render(f"geometry-{toy}", markdown(toy, results / "geometry.json"))
    return 0


def run_toy(toy: str, seeds: list[int] | None, given: dict, runs: Path, results: Path) -> bool:
    """Run what is missing or was made with other settings.  =>  False when interrupted."""
    done = finished(results, toy_row_and_seed)
    for row in rows_of(toy):
        settings = settings_of(toy, row, **given)
        for seed in seeds_of(row, toy, seeds):
            if done.get((toy, row.name, seed), {}).get("settings") == settings:
                continue
            print(f"{toy}: {row.name}, seed {seed}", flush=True)
            out = folder_of(runs, toy, row, seed, given["steps"])
            measured = train(config_of(settings, seed, out))
            if measured is None:
                return False
            record(results, row, seed, settings, measured)
    return True


def toy_row_and_seed(entry: dict) -> tuple[str, str, int]:
    return entry["settings"]["data"], entry["row"], entry["seed"]


def record(results: Path, row: Row, seed: int, settings: dict[str, Any], measured: dict) -> None:
    entries = finished(results, toy_row_and_seed)
    entry = {"row": row.name, "seed": seed, "settings": settings, **measured}
    entries[toy_row_and_seed(entry)] = entry
    write_json(results, list(entries.values()))


def draw_toy(toy_name: str, runs: Path, steps: int, count: int, figures: Path) -> None:
    """Figures of seed 0, once the rows that they show are finished. count: points in a panel."""
    toy, rows = make_toy(toy_name), {row.name: row for row in rows_of(toy_name)}
    folders = {n: folder_of(runs, toy_name, row, 0, steps) for n, row in rows.items()}
    floor, *_ = rows
    wanted = [floor, *SHOWN]
    if missing := [n for n in wanted if not (folders[n] / "network").exists()]:
        print(f"no figure of {toy_name}: {', '.join(missing)} with seed 0 missing")
        return
    networks = {n: load_network(folders[n]) for n in wanted}
    training = toy.training_set(0)
    samples = {n: generate_points(networks[n], count, 0) for n in SHOWN}
    panels = {"training set": training[:count], **samples, "truth": toy.fresh(count, 0)}
    draw_clouds(toy, training, panels, figures / f"geometry-{toy_name}.png")
    titled = {n.replace(" (floor)", ""): network for n, network in networks.items()}
    draw_fields(toy, training, titled, 0, figures / f"geometry-{toy_name}-fields.png")
    if toy_name == "pca":
        draw_images(panels, figures / "geometry-pca-images.png")


def markdown(toy: str, results: Path) -> str:
    """A line for each row, and for the two floors, which depend on the seed only."""
    entries = [e for (data, *_), e in finished(results, toy_row_and_seed).items() if data == toy]
    if not entries:
        return "Not run yet."
    lines = [table_line(["training", "seeds", *COLUMNS]), "|---|---|" + "---|" * len(COLUMNS)]
    for row in rows_of(toy):
        runs = [e.get("metrics") for e in entries if e["row"] == row.name]
        if runs:
            lines.append(line(row.name, runs))
    by_seed = {e["seed"]: e["floors"] for e in entries if "floors" in e}
    for floor in ("training set", "truth"):
        lines.append(line(f"*{floor}*", [floors[floor] for floors in by_seed.values()]))
    return "\n".join(lines)


def line(name: str, runs: list[dict | None]) -> str:
    """runs: the metrics of each seed; None where it diverged."""
    if None in runs:
        cells = ["diverged", *[""] * (len(COLUMNS) - 1)]
    else:
        values = [[run.get(key) for run in runs] for key in COLUMNS.values()]
        cells = [mean_std(v) for v in values]
    return table_line([name, str(len(runs)), *cells])


if __name__ == "__main__":
    sys.exit(main())
