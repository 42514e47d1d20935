#!/usr/bin/env python
"""Run a table of docs/results, or all of them, and write its numbers into its page.

    python scripts/reproduce.py digits             # all rows and seeds that are missing
    python scripts/reproduce.py digits --render    # run nothing; rewrite the page from results/
    python scripts/reproduce.py digits --quick     # check that its rows run; writes to runs/quick

A table is configs/tables/NAME.yaml. It has settings that all rows share, and rows with a name,
seeds and their own settings. Each row and seed is one run on one thread, of `train-pixel` or of the
command that the table names; --jobs run at a time.

A row with `of: TABLE/ROW` trains nothing. It samples from that row's runs with its own sampler
options. A row with `init: TABLE/ROW` starts from the weights of that row's run of the same seed.
A row with `audit_of: TABLE/ROW` uses that row's audit, and starts from its auditor's weights.
An interrupted run is resumed. A finished run is in results/NAME.json and is not repeated. `all`
also runs geometry.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from results_io import IMAGES, RESULTS, ROOT, finished, locked, mean_std, render, table_line

from latent_robust.commands import finetune_latent, train_pixel
from latent_robust.files import write_atomically
from latent_robust.training.directory import AUDIT

EVALUATE = "latent_robust.commands.main"
MODULES = {module.COMMAND.prog: module.COMMAND.module for module in (train_pixel, finetune_latent)}

BASES = ("of", "init", "audit_of")  # keys of a row that name another row, on which it builds

# Settings that make a run one of seconds.
QUICK = {
    "train-pixel": {
        "steps": 2,
        "batch_size": 4,
        "limit": 64,
        "samples": 16,
        "sampling_steps": 2,
        "clip": 1.0,  # samples of an untrained network leave every range
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
        "--quick", action="store_true", help="one row of each kind, a few steps, in runs/quick"
    )
    parser.add_argument("--results", type=Path, help="default: results, or runs/quick")
    options = parser.parse_args(argv)
    if options.table not in ["all", *tables()]:
        parser.error(f"no table {options.table!r}; use all, {', '.join(tables())}")
    default = ROOT / "runs/quick" if options.quick else RESULTS
    results = (options.results or default).resolve()
    bench, failed = Bench(results, options.quick), 0
    for name in tables() if options.table == "all" else [options.table]:
        table = read_table(name)
        if not options.render:
            failed += bench.run_table(name, options.jobs)
        if results == RESULTS:
            render(name, markdown(table, bench.current(name)))
            if "figure" in table:
                draw_figure(name, table)
    if options.table == "all":
        import geometry  # imports torch, which the tables leave to their runs

        args = [f"--{name}" for name in ("render", "quick") if getattr(options, name)]
        failed += geometry.main([*args, "--results", str(results)])
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
        """The run that it samples from (`of`), starts from (`init`) or whose audit it uses."""
        where = next((self.row[key] for key in BASES if key in self.row), None)
        if where is None:
            return None
        table, _, name = where.partition("/")
        row = next(row for row in read_table(table)["rows"] if row["name"] == name)
        return Job(table, row, self.seed)


def jobs_of(table: str) -> list[Job]:
    rows = read_table(table)["rows"]
    return [Job(table, row, seed) for row in rows for seed in row.get("seeds", [0])]


@dataclass(frozen=True)
class Bench:
    """results: the folder of the numbers. Runs of another folder than results/ lie in it too."""

    results: Path
    quick: bool = False

    @property
    def runs(self) -> Path:
        return ROOT / "runs/tables" if self.results == RESULTS else self.results / "tables"

    def file(self, table: str) -> Path:
        return self.results / f"{table}.json"

    def current(self, name: str) -> dict[tuple[str, int], dict]:
        """Finished entries with the settings that the table has now; prints which others exist."""
        entries = finished(self.file(name))
        settings = {(job.row["name"], job.seed): job.settings for job in jobs_of(name)}
        for (row, seed), entry in entries.items():
            if settings.get((row, seed)) != entry["settings"]:
                print(f"{name}: left out {row}, seed {seed}: the table has other settings now")
        return {key: e for key, e in entries.items() if settings.get(key) == e["settings"]}

    def run_table(self, name: str, jobs: int) -> int:
        """Run what is missing or was made with other settings.  =>  how many runs failed."""
        wanted, done = jobs_of(name), self.current(name)
        if self.quick:
            rows = one_of_each_kind(read_table(name)["rows"])
            wanted, done = [Job(name, row, 0) for row in rows], {}
        todo = [job for job in wanted if (job.row["name"], job.seed) not in done]
        bases = [job.base for job in todo if job.base and not self._is_trained(job.base)]
        bases = {job.folder: job for job in bases}
        failed = self._run_all(list(bases.values()), jobs)
        # A base may be a row of this table, which has just been run.
        return failed + self._run_all([job for job in todo if job.folder not in bases], jobs)

    def _is_trained(self, job: Job) -> bool:
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
        if base and not self._is_trained(job.base):
            print(f"  {job.base.folder} must be run first: this row builds on it", flush=True)
            return None
        if not job.trains:
            config = yaml.safe_load((base / "config.yaml").read_text())
            own = {k: v for k, v in job.settings.items() if k not in ("of", "base")}
            options = {"samples": config["samples"], **own, "seed": job.seed}
            if self.quick:
                options.update(steps=2, samples=16)
            options["out"] = out / "metrics.json"
            args = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
            code = self._call(EVALUATE, ["evaluate", str(base), *args], out / "output.txt")
        else:
            command = read_table(job.table).get("command", "train-pixel")
            settings = {**job.settings, **(QUICK[command] if self.quick else {})}
            if self.quick and settings.get("drop_noisy"):
                # An auditor that has learned nothing may flag every sample.
                settings["objective"] = "ambient"
            if base and settings.pop("audit_of", None):
                auditor = yaml.safe_load((base / "config.yaml").read_text())["auditor"]
                settings.update(levels=str(base / AUDIT), init=str(base / auditor))
            elif base:
                settings.update(init=str(base))
            file = out / "settings.yaml"
            text = yaml.safe_dump({k: v for k, v in settings.items() if k != "base"})
            if base:
                text += f"# There: {json.dumps(job.base.settings)}\n"
            if file.exists() and file.read_text() != text:
                self._archive(out)
            file.write_text(text)
            args = ["--config", str(file), "--out", str(out)]
            args += ["--seed", str(job.seed), "--resume"]
            code = self._call(MODULES[command], args, out / "output.txt")
        if code != 0:
            print(f"  failed with exit code {code}, see {out / 'output.txt'}", flush=True)
            return None
        saved = json.loads((out / "metrics.json").read_text())
        return saved if job.trains else {"metrics": saved}

    def _archive(self, out: Path) -> None:
        """Move a run with other settings away, so that it is neither resumed nor reported."""
        free = next(n for n in range(1, 10_000) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{free}"))
        out.mkdir()

    def _call(self, module: str, argv: list[str], output: Path) -> int:
        """Run a command.  =>  its exit code. A quick run is shorter than the start of a process."""
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


def one_of_each_kind(rows: list[dict]) -> list[dict]:
    """The first of the rows that differ only in numbers and in the kind of dirt."""
    kinds = {}
    for row in rows:
        words = {k: v for k, v in row.items() if isinstance(v, str)}
        words = {k: v for k, v in words.items() if k not in ("name", "contamination")}
        kinds.setdefault((tuple(sorted(row)), tuple(sorted(words.items()))), row)
    return list(kinds.values())


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
    lines = [table_line(["training", "seeds", *titles]), "|---|---|" + "---|" * len(columns)]
    for row in table["rows"]:
        runs = [e for (r, _), e in entries.items() if r == row["name"]]
        if not runs:
            continue
        if any("metrics" not in e for e in runs):
            cells = ["diverged", *[""] * (len(columns) - 1)]
        else:
            cells = [mean_std([value(e) for e in runs]) for _, value in columns]
        lines.append(table_line([row["name"], str(len(runs)), *cells]))
    # Each seed has a contaminated training set of its own; rows of a seed share it.
    dirty = [e for e in measured if has_dirt(e)]
    floors = {e["seed"]: {"metrics": e["floors"]["training set"]} for e in dirty}
    if len({e["settings"]["contamination"] for e in dirty}) == 1:
        cells = [mean_std([value(floor) for floor in floors.values()]) for _, value in columns]
        label = "*the contaminated training set itself*"
        lines.append(table_line([label, str(len(floors)), *cells]))
    clean = first["residual_noise_reference"]
    return "\n".join(lines) + f"\n\nResidual noise of the clean images: {clean:.3g}."


def has_dirt(entry: dict) -> bool:
    return "floors" in entry and entry["settings"].get("contamination") != "none"


def draw_figure(name: str, table: dict) -> None:
    """docs/results/img/NAME.png: image grids of the runs that the table's `figure` names."""
    folder = ROOT / "runs/tables" / name
    panels = {title: folder / file for title, file in table["figure"].items()}
    if missing := [str(path) for path in panels.values() if not path.exists()]:
        print(f"no figure of {name}: {', '.join(missing)} missing")
        return
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3 * len(panels), 3.3), layout="constrained")
    for axes, (title, path) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(Image.open(path), cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    figure.savefig(IMAGES / f"{name}.png", dpi=100)


if __name__ == "__main__":
    sys.exit(main())
