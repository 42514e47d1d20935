"""A contaminated copy of a picture set, on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torchvision.transforms.v2 import functional as v2
from tqdm import tqdm

from latent_robust.errors import InputError
from latent_robust.files import write_jsonl

from .contamination import ContaminatedPictures
from .corruptions import Corruption, to_bytes
from .pictures import PictureSet


def contaminate_folder(
    pictures: PictureSet, corruptions: Sequence[Corruption], seed: int, out: Path
) -> None:
    """Writes 000000.png, ... (clipped, 8 bits; sorted by name they are in the manifest's order),
    then metadata.jsonl (for `datasets`: file_name, the original name, label) and manifest.jsonl
    (what was done; for evaluation).

    out: a directory that is new or empty. The manifest comes last: where it is, all is. Raises
    InputError if `out` holds anything or cannot be written.
    """
    samples = ContaminatedPictures(pictures, corruptions, seed)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty; choose a new or empty directory")
        for index in tqdm(range(len(samples)), "writing", delay=2, leave=False):
            picture = (samples[index]["sample"] + 1) / 2
            v2.to_pil_image(to_bytes(picture)).save(out / _file_name(index, len(samples)))
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror or error}; choose a place that is writable "
            "and has room, and delete what may have been begun there"
        ) from error
    write_jsonl(_metadata(pictures), out / "metadata.jsonl")
    samples.write_manifest(out / "manifest.jsonl")


def _metadata(pictures: PictureSet) -> Iterator[dict]:
    for index in range(len(pictures)):
        row = {"file_name": _file_name(index, len(pictures)), "original": pictures.name(index)}
        if pictures.labels is not None:
            row["label"] = int(pictures.labels[index])
        yield row


def _file_name(index: int, count: int) -> str:
    digits = max(6, len(str(count - 1)))
    return f"{index:0{digits}d}.png"
