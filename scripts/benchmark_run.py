#!/usr/bin/env python
"""Measure whole runs of finetune-latent: start-up time, memory, speed, with and without cache.

    python scripts/benchmark_run.py        # results/benchmark-run.json, docs/results/run-time.md
    python scripts/benchmark_run.py --pairs 100000   # adds a row; keeps the other results

A run of one step is timed from the start of the process to the end of the step, and to the end of
the run, with LoRA files verified and the report written. "Warm" repeats this with a full cache.
Speed comes from log.jsonl, without its first row. All with the model and data of the demo, on one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from reproduce import ROOT, render

from latent_robust.files import write_json

RESULTS = ROOT / "results" / "benchmark-run.json"
SPEED_PAIRS, STEPS, LOGGED = 1_000, 160, 20
OBJECTIVES = ("ddpm", "robust-random")
COMMON = [
    *("--lora", "--data", "scenes", "--contamination", "gaussian:fraction=0.9,sigma=0.2"),
    *("--rank", "32", "--targets", '["attention", "mlp", "conv1", "conv2"]'),
    *("--batch-size", "16", "--held-out", "0", "--samples", "0", "--prompts", "[]"),
    *("--log-every", str(LOGGED), "--checkpoint-every", str(STEPS), "--device", "cpu"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="*", default=[1_000, 10_000])
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for count in options.pairs:
        print(f"start-up with {count:,} pairs", flush=True)
        with TemporaryDirectory() as folder:
            results.setdefault("start_up", {})[str(count)] = start_up(Path(folder), count)
        write_json(RESULTS, results)
    print("samples a second", flush=True)
    with TemporaryDirectory() as folder:
        results["samples_per_second"] = speeds(Path(folder))
    write_json(RESULTS, results)
    render("benchmark-run", markdown(results))


def start_up(folder: Path, count: int) -> dict[str, float]:
    cache = folder / "cache"
    cold, warm = (run(folder / name, count, steps=1, cache=cache) for name in ("cold", "warm"))
    return {
        "cold_first_step": cold["first_step"],
        "warm_first_step": warm["first_step"],
        "cold_seconds": cold["seconds"],
        "warm_seconds": warm["seconds"],
        "cold_peak_bytes": cold["peak"],
        "warm_peak_bytes": warm["peak"],
        "cache_bytes": sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()),
    }


def speeds(folder: Path) -> dict[str, float]:
    cache = folder / "cache"
    run(folder / "fills-the-cache", SPEED_PAIRS, steps=1, cache=cache)
    return {
        f"{objective}, {name}": run(
            folder / f"{objective}-{name}",
            SPEED_PAIRS,
            steps=STEPS,
            cache=how,
            objective=objective,
        )["speed"]
        for objective in OBJECTIVES
        for name, how in (("cached", cache), ("uncached", None))
    }


def run(
    out: Path, count: int, *, steps: int, cache: Path | None, objective: str = "ddpm"
) -> dict[str, float]:
    """=>  seconds: from the start to the end of the process; first_step: seconds from the start to
    the last row of the log; peak: memory in bytes; speed: median samples per second of the rows of
    the log, without the first."""
    command = [
        sys.executable,
        "-m",
        "latent_robust.commands.finetune_latent",
        *COMMON,
        "--out",
        str(out),
    ]
    command += ["--limit", str(count), "--steps", str(steps), "--objective", objective]
    command += ["--no-cache"] if cache is None else ["--cache-dir", str(cache)]
    began, clock = time.perf_counter(), time.time()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    speeds = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    return {
        "seconds": time.perf_counter() - began,
        "first_step": log.stat().st_mtime - clock,
        "peak": 1024 * used.ru_maxrss,
        "speed": median(speeds[1:] or speeds),
    }


def markdown(results: dict) -> str:
    lines = [
        "| pairs | to the first step, s | warm | to the end, s | warm | peak, MiB | warm | cache |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for count, row in sorted(results["start_up"].items(), key=lambda item: int(item[0])):
        sizes = [row[f"{key}_bytes"] / 2**20 for key in ("cold_peak", "warm_peak", "cache")]
        cells = [
            f"{row[f'{start}_{what}']:.1f}"
            for what in ("first_step", "seconds")
            for start in ("cold", "warm")
        ]
        cells += [f"{size:.0f}" for size in sizes]
        lines.append(f"| {int(count):,} | {' | '.join(cells)} |")
    lines += ["", "| training | samples a second | uncached |", "|---|---|---|"]
    speed = results["samples_per_second"]
    for name in OBJECTIVES:
        cached, uncached = (speed[f"{name}, {how}"] for how in ("cached", "uncached"))
        lines.append(f"| {name} | {cached:.0f} | {uncached:.0f}, {cached / uncached:.1f}x fewer |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
