"""log.jsonl and TensorBoard, from rows that stay on the device until they are written."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_robust.files import write_atomically, writing


class RunLog:
    """Averages rows between two writes. Only the main process writes."""

    def __init__(self, out: Path, step: int, accelerator: Accelerator):
        """Rows of `log.jsonl` beyond `step`, from a run that was killed, are dropped; and of its
        checkpoint what is found out after it is saved, which will be once more."""
        self.path, self.accelerator = out / "log.jsonl", accelerator
        self.rows: list[dict[str, Tensor | float]] = []
        self.samples, self.since = 0, time.perf_counter()
        out.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_before(line, step)]
            write_atomically(self.path, "".join(line + "\n" for line in kept))

    def add(self, row: dict[str, Tensor | float], samples: int) -> None:
        self.rows.append(row)
        self.samples += samples

    def write(self, step: int) -> dict[str, str]:
        """Writes the means since the last write, of what is finite: one bad step should not hide
        the others.  =>  what a progress bar shows."""
        means: dict[str, float | None] = {}
        for key in self.rows[0]:
            values = torch.stack([torch.as_tensor(r[key], dtype=torch.float32) for r in self.rows])
            mean = values[values.isfinite()].mean().item()
            means[key] = mean if math.isfinite(mean) else None
        now = time.perf_counter()
        means["samples_per_second"] = self.samples / (now - self.since)
        self.rows, self.samples, self.since = [], 0, now
        if self.accelerator.is_main_process:
            append_row(self.path.parent, {"step": step, **means})
            known = {key: mean for key, mean in means.items() if mean is not None}
            self.accelerator.log(known, step=step)
        shown = {key: _short(means[key]) for key in ("loss", "penalty") if key in means}
        return {**shown, "samples/s": f"{means['samples_per_second']:.0f}"}


def _short(mean: float | None) -> str:
    return "not finite" if mean is None else f"{mean:.4f}"


def append_row(out: Path, row: dict[str, float | None]) -> None:
    """Add a row, its `step` among it, to the log of the run in `out`."""
    path = out / "log.jsonl"
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _is_before(line: str, step: int) -> bool:
    """Not true of a line that a killed run left half written."""
    try:
        row = json.loads(line)
        return row["step"] < step or (row["step"] == step and "loss" in row)
    except (ValueError, KeyError, TypeError):
        return False
