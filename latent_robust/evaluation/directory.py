"""The files of a run directory that are written before the first step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from latent_robust.files import write_jsonl, writing

from .figures import save_grid


def begin_directory(
    out: Path,
    manifest: Iterable[dict],
    quarantine: list[dict],
    grids: Mapping[str, Tensor],
    columns: int,
) -> None:
    """manifest: the contamination of each sample, for evaluation only. quarantine: rows {"name",
    "reason"}. grids: images (N, C, H, W) in [-1, 1], by the name of their file in `samples/`."""
    samples = out / "samples"
    with writing(out):
        samples.mkdir(parents=True, exist_ok=True)
    write_jsonl(manifest, out / "manifest.jsonl")
    for name, images in grids.items():
        save_grid(images, samples / f"{name}.png", columns)
    if quarantine:
        file = out / "quarantine.jsonl"
        write_jsonl(quarantine, file)
        print(f"{len(quarantine)} broken images are left out, see {file}", file=sys.stderr)
