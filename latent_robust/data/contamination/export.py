"""Write a contaminated copy of an image or pair dataset to disk.

The copy can be opened like any other folder; the manifest says what was done to each image.
"""

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
from .dataset import ContaminatedDataset
from .image_dataset import ContaminatedImages
from .kinds.image import to_bytes
from .pair_dataset import ContaminatedPairs


def contaminate_folder(
    images: ImageSet, corruptions: Sequence[Corruption], seed: int, out: Path
) -> None:
    """Write contaminated images to `out`; metadata.jsonl also has the label, if there are labels.

    The files and errors are those of `_write`.
    """
    samples = ContaminatedImages(images, corruptions, seed)

    def metadata(index: int) -> dict:
        return {} if images.labels is None else {"label": int(images.labels[index])}

    _write(samples, lambda index: samples[index]["sample"], metadata, out)


def contaminate_pairs(samples: ContaminatedPairs, out: Path) -> None:
    """Write contaminated pairs to `out`, each image at the size of its bucket.

    metadata.jsonl also has `text` (the caption) and `repeats`, so that `open_pairs` reads the
    directory. The files and errors are those of `_write`.
    """

    def metadata(index: int) -> dict:
        return {"text": samples.caption(index), "repeats": samples.pairs.repeats[index]}

    _write(samples, samples.sample, metadata, out)


def _write(
    samples: ContaminatedDataset,
    sample: Callable[[int], Tensor],
    metadata: Callable[[int], dict],
    out: Path,
) -> None:
    """Write 000000.png, ..., then metadata.jsonl, then manifest.jsonl.

    The images are clipped to 8 bits; their names sort in the manifest's order. metadata.jsonl has
    `file_name`, `original` (the name in the source) and metadata(index), as `datasets` reads it.
    manifest.jsonl records every change, for evaluation; it is written last, so a directory that
    has it is complete.

    out: a new or empty directory. Raises InputError if `out` is not empty or cannot be written.
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
            f"cannot write to {out}: {error.strerror or error}; choose a writable directory with "
            "free space, and delete the files that were already written"
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
