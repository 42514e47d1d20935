"""log.jsonl and TensorBoard, from rows that stay on the device until they are written."""

from __future__ import annotations

import json
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
        """Writes the means since the last write.  =>  what a progress bar shows."""
        means = {
            key: torch.stack([torch.as_tensor(r[key], dtype=torch.float32) for r in self.rows])
            .mean()
            .item()
            for key in self.rows[0]
        }
        now = time.perf_counter()
        means["samples_per_second"] = self.samples / (now - self.since)
        self.rows, self.samples, self.since = [], 0, now
        if self.accelerator.is_main_process:
            append_row(self.path.parent, {"step": step, **means})
            self.accelerator.log(means, step=step)
        shown = {"loss": f"{means['loss']:.4f}", "samples/s": f"{means['samples_per_second']:.0f}"}
        if "penalty" in means:
            shown["penalty"] = f"{means['penalty']:.4f}"
        return shown


def append_row(out: Path, row: dict[str, float]) -> None:
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
