"""A contaminated copy of a set of images, or of pairs of images and captions, on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2 import functional as v2
from tqdm import tqdm

from latent_robust.data.images import ImageSet
from latent_robust.errors import InputError
from latent_robust.files import write_jsonl

from .corruption import Corruption
from .dataset import Contaminated
from .image_dataset import ContaminatedImages
from .kinds.image import to_bytes
from .pair_dataset import ContaminatedPairs


def contaminate_folder(
    images: ImageSet, corruptions: Sequence[Corruption], seed: int, out: Path
) -> None:
    """Writes the samples as _write says, with label (if there are labels) in metadata.jsonl."""
    samples = ContaminatedImages(images, corruptions, seed)

    def metadata(index: int) -> dict:
        return {} if images.labels is None else {"label": int(images.labels[index])}

    _write(samples, lambda index: samples[index]["sample"], metadata, out)


def contaminate_pairs(samples: ContaminatedPairs, out: Path) -> None:
    """Writes the samples as _write says, each at its bucket's size, with text (the caption) and
    repeats in metadata.jsonl. `open_pairs` reads the directory."""

    def metadata(index: int) -> dict:
        return {"text": samples.caption(index), "repeats": samples.pairs.repeats[index]}

    _write(samples, samples.sample, metadata, out)


def _write(
    samples: Contaminated,
    sample: Callable[[int], Tensor],
    metadata: Callable[[int], dict],
    out: Path,
) -> None:
    """Writes 000000.png, ... (clipped, 8 bits; sorted by name they are in the manifest's order),
    then metadata.jsonl (for `datasets`: file_name, the original name, metadata(index)) and
    manifest.jsonl (what was done; for evaluation).

    out: a directory that is new or empty. The manifest comes last: where it is, all is. Raises
    InputError if `out` holds anything or cannot be written.
    """
    out = Path(out)
    names = [_file_name(index, len(samples)) for index in range(len(samples))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty; choose a new or empty directory")
        for index, name in enumerate(tqdm(names, "writing", delay=2, leave=False)):
            image = (sample(index) + 1) / 2
            v2.to_pil_image(to_bytes(image)).save(out / name)
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror or error}; choose a place that is writable "
            "and has room, and delete what may have been begun there"
        ) from error
    rows = (
        {"file_name": name, "original": samples.name(index), **metadata(index)}
        for index, name in enumerate(names)
    )
    write_jsonl(rows, out / "metadata.jsonl")
    samples.write_manifest(out / "manifest.jsonl")


def _file_name(index: int, count: int) -> str:
    digits = max(6, len(str(count - 1)))
    return f"{index:0{digits}d}.png"
