#!/usr/bin/env python
"""Runs a named table of RESULTS.md, or all, and writes its numbers into it.

    python scripts/reproduce.py digits             # all rows and seeds that are not there yet
    python scripts/reproduce.py digits --render    # only rewrite RESULTS.md from results/
    python scripts/reproduce.py digits --quick     # do its rows run at all? in runs/quick

A table is configs/tables/NAME.yaml: settings that all rows share, and rows of a name, seeds and
settings of their own. Each (row, seed) is one run of one thread, of `train-pixel` or of the command
that the table names; --jobs of them run at a time. A row with `of: TABLE/ROW` trains nothing: it
draws from that row's runs with the sampler's options that it gives. A run that was stopped is
resumed, a finished one is kept: results/NAME.json. One with `init: TABLE/ROW` starts from what that
row's run of the same seed has learned. `all` runs the toys of geometry.py as well.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from latent_robust.commands import finetune_latent, train_pixel
from latent_robust.files import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "RESULTS.md"
EVALUATE = "latent_robust.commands.main"
MODULES = {module.COMMAND.prog: module.COMMAND.module for module in (train_pixel, finetune_latent)}

# Settings that make a run one of seconds.
QUICK = {
    "train-pixel": {
        "steps": 2,
        "batch_size": 4,
        "limit": 64,
        "samples": 16,
        "sampling_steps": 2,
        "clip": 1.0,  # what has not learned anything leaves every range
    },
    "finetune-latent": {
        "steps": 1,
        "batch_size": 2,
        "limit": 24,
        "samples": 4,
        "rank": 2,
        "cache_dir": None,
    },
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"all, or one of {', '.join(tables())}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a row of each kind, almost no steps, in runs/quick"
    )
    parser.add_argument("--results", type=Path, help="default: results, or runs/quick")
    options = parser.parse_args(argv)
    if options.table not in ["all", *tables()]:
        parser.error(f"no table {options.table!r}; there are all, {', '.join(tables())}")
    results = (options.results or ROOT / ("runs/quick" if options.quick else "results")).resolve()
    bench, failed = Bench(results, options.quick), 0
    for name in tables() if options.table == "all" else [options.table]:
        table = read_table(name)
        if not options.render:
            failed += bench.run_table(name, options.jobs)
        if results == ROOT / "results":
            render(name, markdown(table, bench.current(name)))
            if "figure" in table:
                draw_figure(name, table)
    if options.table == "all":
        import geometry

        told = [f"--{name}" for name in ("render", "quick") if getattr(options, name)]
        failed += geometry.main([*told, "--results", str(results)])
    return min(failed, 1)


def tables() -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs/tables").glob("*.yaml"))


@cache
def read_table(name: str) -> dict:
    return yaml.safe_load((ROOT / f"configs/tables/{name}.yaml").read_text())


def settings_of(table: dict, row: dict) -> dict:
    common = {} if "of" in row else table.get("common", {})
    settings = {**common, **row}
    return {key: value for key, value in settings.items() if key not in ("name", "seeds")}


@dataclass(frozen=True)
class Job:
    table: str
    row: dict
    seed: int

    @property
    def settings(self) -> dict:
        own = settings_of(read_table(self.table), self.row)
        return own if self.base is None else {**own, "base": self.base.settings}

    @property
    def folder(self) -> str:
        slug = re.sub(r"[^a-z0-9.]+", "-", self.row["name"].lower()).strip("-")
        return f"{self.table}/{slug}-seed{self.seed}"

    @property
    def trains(self) -> bool:
        return "of" not in self.row

    @property
    def base(self) -> Job | None:
        """The run that it draws from, where it is none itself, or starts from."""
        where = self.row.get("of") or self.row.get("init")
        if where is None:
            return None
        table, _, name = where.partition("/")
        return Job(
            table, next(r for r in read_table(table)["rows"] if r["name"] == name), self.seed
        )


def jobs_of(table: str) -> list[Job]:
    rows = read_table(table)["rows"]
    return [Job(table, row, seed) for row in rows for seed in row.get("seeds", [0])]


@dataclass(frozen=True)
class Bench:
    """results: where the numbers go. Runs stay beside numbers that are not the project's own."""

    results: Path
    quick: bool = False

    @property
    def runs(self) -> Path:
        own = self.results == ROOT / "results"
        return ROOT / "runs/tables" if own else self.results / "tables"

    def file(self, table: str) -> Path:
        return self.results / f"{table}.json"

    def current(self, name: str) -> dict[tuple[str, int], dict]:
        """What is finished of a table as it is now; what was made with other settings is named."""
        have = finished(self.file(name))
        settings = {(job.row["name"], job.seed): job.settings for job in jobs_of(name)}
        for (row, seed), entry in have.items():
            if settings.get((row, seed)) != entry["settings"]:
                print(f"{name}: left out, as the table has other settings now: {row}, seed {seed}")
        return {key: e for key, e in have.items() if settings.get(key) == e["settings"]}

    def run_table(self, name: str, jobs: int) -> int:
        """Runs what is not there yet, or was made with other settings.  =>  how many failed."""
        wanted, have = jobs_of(name), self.current(name)
        if self.quick:
            rows = one_of_each_kind(read_table(name)["rows"])
            wanted, have = [Job(name, row, 0) for row in rows], {}
        todo = [job for job in wanted if (job.row["name"], job.seed) not in have]
        bases = {
            job.base.folder: job.base for job in todo if job.base and not self._stands(job.base)
        }
        failed = self._run_all(list(bases.values()), jobs)
        # A base of this very table is there by now.
        return failed + self._run_all([job for job in todo if job.folder not in bases], jobs)

    def _stands(self, job: Job) -> bool:
        out = self.runs / job.folder
        if not (out / "metrics.json").exists():
            return False
        return self.quick or yaml.safe_load((out / "settings.yaml").read_text()) == job.settings

    def _run_all(self, todo: list[Job], jobs: int) -> int:
        failed = 0
        with ThreadPoolExecutor(1 if self.quick else jobs) as pool:
            started = {pool.submit(self.run, job): job for job in todo}
            for future in as_completed(started):
                saved = future.result()
                if saved is None:
                    failed += 1
                else:
                    self.record(started[future], saved)
        return failed

    def run(self, job: Job) -> dict | None:
        with locked(self.runs / job.folder):
            return self._run(job)

    def _run(self, job: Job) -> dict | None:
        print(f"{job.table}: {job.row['name']}, seed {job.seed}", flush=True)
        out = self.runs / job.folder
        out.mkdir(parents=True, exist_ok=True)
        base = job.base and self.runs / job.base.folder
        if base and not self._stands(job.base):
            print(f"  {job.base.folder} is not there to draw or start from", flush=True)
            return None
        if not job.trains:
            config = yaml.safe_load((base / "config.yaml").read_text())
            own = {k: v for k, v in job.settings.items() if k not in ("of", "base")}
            options = {"samples": config["samples"], **own, "seed": job.seed}
            if self.quick:
                options.update(steps=2, samples=16)
            options["out"] = out / "metrics.json"
            told = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
            code = self._call(EVALUATE, ["evaluate", str(base), *told], out / "output.txt")
        else:
            command = read_table(job.table).get("command", "train-pixel")
            settings = {**job.settings, **(QUICK[command] if self.quick else {})}
            if self.quick and settings.get("drop_noisy"):
                # A judge that has learned nothing may call everything noisy.
                settings["objective"] = "ambient"
            if base:
                settings.update(init=str(base))
            file = out / "settings.yaml"
            text = yaml.safe_dump({k: v for k, v in settings.items() if k != "base"})
            if base:
                text += f"# There: {json.dumps(job.base.settings)}\n"
            if file.exists() and file.read_text() != text:
                self._set_aside(out)
            file.write_text(text)
            told = ["--config", str(file), "--out", str(out)]
            told += ["--seed", str(job.seed), "--resume"]
            code = self._call(MODULES[command], told, out / "output.txt")
        if code != 0:
            print(f"  failed with exit code {code}, see {out / 'output.txt'}", flush=True)
            return None
        saved = json.loads((out / "metrics.json").read_text())
        return saved if job.trains else {"metrics": saved}

    def _set_aside(self, out: Path) -> None:
        """A run with other settings must neither be resumed nor taken for this one."""
        free = next(n for n in range(1, 10_000) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{free}"))
        out.mkdir()

    def _call(self, module: str, argv: list[str], output: Path) -> int:
        """A quick run is not worth a process of its own, which takes longer to start."""
        with open(output, "w") as file:
            if self.quick:
                with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                    return importlib.import_module(module).main(argv)
            return subprocess.run(
                [sys.executable, "-m", module, *argv],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            ).returncode

    def record(self, job: Job, saved: dict) -> None:
        file = self.file(job.table)
        entry = {"row": job.row["name"], "seed": job.seed, "settings": job.settings, **saved}
        with locked(self.runs / job.table):  # other processes may run other rows
            entries = finished(file)
            entries[job.row["name"], job.seed] = entry
            write_atomically(file, json.dumps(list(entries.values()), indent=1) + "\n")
        print(f"  done: {job.row['name']}, seed {job.seed}", flush=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for any other process that is at work on this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def one_of_each_kind(rows: list[dict]) -> list[dict]:
    """Of rows that differ in nothing but numbers and the kind of dirt, the first."""
    kinds = {}
    for row in rows:
        words = {k: v for k, v in row.items() if isinstance(v, str)}
        words = {k: v for k, v in words.items() if k not in ("name", "contamination")}
        kinds.setdefault((tuple(sorted(row)), tuple(sorted(words.items()))), row)
    return list(kinds.values())


def finished(file: Path) -> dict[tuple[str, int], dict]:
    entries = json.loads(file.read_text()) if file.exists() else []
    return {(entry["row"], entry["seed"]): entry for entry in entries}


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


def markdown(table: dict, entries: dict[tuple[str, int], dict]) -> str:
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
    columns = [c for c in columns if c[0] in table.get("columns", [c[0]])]
    titles = [title for title, _ in columns]
    lines = [f"| training | seeds | {' | '.join(titles)} |", "|---|---|" + "---|" * len(columns)]
    for row in table["rows"]:
        runs = [e for (r, _), e in entries.items() if r == row["name"]]
        if not runs:
            continue
        if any("metrics" not in e for e in runs):
            lines.append(f"| {row['name']} | {len(runs)} | diverged |" + " |" * (len(columns) - 1))
            continue
        cells = [mean_std([value(e) for e in runs]) for _, value in columns]
        lines.append(f"| {row['name']} | {len(runs)} | {' | '.join(cells)} |")
    # Each seed has a contaminated training set of its own; rows of a seed share it.
    dirty = [e for e in measured if has_dirt(e)]
    floors = {e["seed"]: {"metrics": e["floors"]["training set"]} for e in dirty}
    if len({e["settings"]["contamination"] for e in dirty}) == 1:
        cells = [mean_std([value(floor) for floor in floors.values()]) for _, value in columns]
        label = "*the contaminated training set itself*"
        lines.append(f"| {label} | {len(floors)} | {' | '.join(cells)} |")
    clean = first["residual_noise_reference"]
    return "\n".join(lines) + f"\n\nResidual noise of the clean images: {clean:.3g}."


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


def mean_std(values: list[float | None]) -> str:
    """Mean and, for several seeds, sample standard deviation, to three significant figures."""
    if None in values:
        return "-"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    sys.exit(main())
