"""Plan what is encoded, under which keys and in which batches, and encode it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from latent_robust.errors import InputError

from .shards import Shards, ShardWriter

if TYPE_CHECKING:
    from latent_robust.data.contamination.pair_dataset import ContaminatedPairs
    from latent_robust.latent.base.components import Components

# Part of every key. Raise it when a change of the code encodes the same input differently.
VERSION = 1


class Plan:
    """The keys and batches of a set of pairs.

    image_keys, caption_keys, tagged_keys, tag_keys: by the pair's index. images, captions: batches
    {key: index or caption}; equal items occur once, and images are grouped by bucket. The batches
    do not depend on what is already cached: a build that resumes after a kill uses the same ones
    and gives the same bits.
    """

    def __init__(
        self,
        pairs: ContaminatedPairs,
        identity: str,
        batch_size: int,
        tags: Sequence[str] | None,
    ):
        """identity: `Components.identity`. tags: words that each pair's tagged caption ends with;
        None: there are none."""
        indices = range(len(pairs))
        self.image_keys = [
            _key("image", pairs.checksum(i), pairs.bucket(i), identity) for i in indices
        ]
        texts = [pairs.caption(i) for i in indices]
        tags = tags or []
        tagged = [with_tag(*pair) for pair in zip(texts, tags, strict=False)]
        keys = {text: _key("caption", text, identity) for text in (*texts, *tagged, *tags)}
        self.caption_keys = [keys[text] for text in texts]
        self.tagged_keys = [keys[text] for text in tagged]
        self.tag_keys = [keys[text] for text in tags]

        by_bucket: dict[tuple[int, int], dict[str, int]] = {}
        for i in indices:
            by_bucket.setdefault(pairs.bucket(i), {}).setdefault(self.image_keys[i], i)
        self.images = [b for members in by_bucket.values() for b in _cut(members, batch_size)]
        self.captions = list(_cut({key: text for text, key in keys.items()}, batch_size))


class Counts(NamedTuple):
    """Numbers of items, over all ranks."""

    encoded: int
    cached: int


def encode_missing(
    kind: str,
    batches: Sequence[dict[str, Any]],
    encode: Callable[[list], dict[str, Tensor]],
    shards: Shards,
    rank: int,
    ranks: int,
) -> Counts:
    """Encode this rank's share of the items that `shards` lacks, into new shards in its folder.

    kind: "latents" or "text"; encode: the values of a batch to {name: (B, ...)}.  =>  the counts of
    all ranks together. InputError if the disk is or would become full.
    """
    total = sum(map(len, batches))
    missing = sum(key not in shards for batch in batches for key in batch)
    # Batches are assigned to ranks before cached items are removed: while another run writes to the
    # folder, each rank may see different items in it.
    mine = [{k: v for k, v in batch.items() if k not in shards} for batch in batches[rank::ranks]]
    mine = [batch for batch in mine if batch]
    writer = ShardWriter(shards.folder, kind)
    progress = tqdm(mine, f"encoding {kind}", unit="batch", delay=2, leave=False, disable=rank > 0)
    for number, batch in enumerate(progress):
        encoded = encode(list(batch.values()))
        if number == 0:
            _check_room(encoded, missing, kind, shards.folder)
        writer.add(list(batch), encoded)
    writer.flush()
    return Counts(missing, total - missing)


def encode_images(
    components: Components, pairs: ContaminatedPairs, indices: Sequence[int]
) -> dict[str, Tensor]:
    """indices: of pairs that share a bucket.
    =>  mean, std of the scaled latents, (B, c, h, w) float32, on the CPU.

    InputError if the VAE overflows."""
    samples = torch.stack([pairs.sample(i) for i in indices])
    with torch.no_grad():
        mean, std = components.encode_images(samples)
    return _checked({"mean": mean, "std": std}, [pairs.name(i) for i in indices], "VAE")


def encode_captions(components: Components, captions: Sequence[str]) -> dict[str, Tensor]:
    """=>  the network's text conditions {name: (B, ...)}, on the CPU in the encoders' dtype.

    InputError if a text encoder overflows."""
    return _checked(components.encode_text(list(captions)), captions, "text encoder")


def with_tag(caption: str, tag: str) -> str:
    return ", ".join(filter(None, (caption, tag)))


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def _cut(members: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    rows = iter(members.items())
    while batch := dict(islice(rows, size)):
        yield batch


def _check_room(encoded: dict[str, Tensor], items: int, kind: str, folder: Path) -> None:
    """InputError if `items` items will not fit on the disk. encoded: the first batch of them."""
    per_item = sum(value[0].nbytes for value in encoded.values())
    need, free = items * per_item, shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"the {kind} of {items:,} items take {need / 1e9:.1f} GB, but the disk of {folder} has "
            f"only {free / 1e9:.1f} GB free; choose another --cache-dir, or --no-cache"
        )


def _checked(encoded: dict[str, Tensor], names: Sequence[str], encoder: str) -> dict[str, Tensor]:
    """The same tensors, contiguous, as they are stored. InputError that names the first non-finite
    item. names: of the B items."""
    for value in encoded.values():
        finite = value.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            raise InputError(
                f"the {encoder} gives non-finite values for {names[finite.index(False)]!r}; "
                "use bf16 or fp32 (in fp16 the VAE of SDXL and T5 overflow)"
            )
    return {name: value.contiguous() for name, value in encoded.items()}
