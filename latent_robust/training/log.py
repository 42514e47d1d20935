"""log.jsonl and TensorBoard. Values stay on the device until they are written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_robust.files import write_atomically, writing


class RunLog:
    """Averages the rows between two writes. Only the main process writes."""

    def __init__(self, out: Path, step: int, accelerator: Accelerator):
        """step: at which training starts or resumes.

        Drops the rows of log.jsonl beyond `step`, which a killed run left. Of `step` itself only
        the row with the loss stays: what is measured after the checkpoint is measured again.
        """
        self.path, self.accelerator = out / "log.jsonl", accelerator
        self.rows: list[Mapping[str, Tensor | float]] = []  # since the last write
        self.samples, self.since = 0, time.perf_counter()
        out.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_kept(line, step)]
            write_atomically(self.path, "".join(line + "\n" for line in kept))

    def add(self, row: Mapping[str, Tensor | float], samples: int) -> None:
        """One step: its values, and how many samples it took on all ranks."""
        self.rows.append(row)
        self.samples += samples

    def write(self, step: int) -> dict[str, str]:
        """Write the means of the finite values since the last write.  =>  for a progress bar.

        One bad step must not hide the others. A value that was never finite is written as null.
        """
        means: dict[str, float | None] = {}
        for key in self.rows[0]:
            values = torch.stack([torch.as_tensor(r[key], dtype=torch.float32) for r in self.rows])
            mean = values[values.isfinite()].mean().item()
            means[key] = mean if math.isfinite(mean) else None
        now = time.perf_counter()
        speed = self.samples / (now - self.since)
        means["samples_per_second"] = speed
        self.rows, self.samples, self.since = [], 0, now
        if self.accelerator.is_main_process:
            append_row(self.path.parent, {"step": step, **means})
            finite = {key: mean for key, mean in means.items() if mean is not None}
            self.accelerator.log(finite, step=step)
        shown = [key for key in ("loss", "penalty") if key in means]
        return {**{key: _short(means[key]) for key in shown}, "samples/s": f"{speed:.0f}"}


def _short(mean: float | None) -> str:
    return "not finite" if mean is None else f"{mean:.4f}"


def append_row(out: Path, row: Mapping[str, float | None]) -> None:
    """Append a row to the log of the run in `out`. row: has the key `step`."""
    path = out / "log.jsonl"
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _is_kept(line: str, step: int) -> bool:
    """Whether a run that resumes at `step` keeps this line. False for an incomplete line."""
    try:
        row = json.loads(line)
        return row["step"] < step or (row["step"] == step and "loss" in row)
    except (ValueError, KeyError, TypeError):
        return False
