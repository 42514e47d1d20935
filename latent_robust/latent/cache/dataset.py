"""Encode every image and caption once, so that the VAE and the text encoders can be unloaded.

For each image the cache holds the mean and the standard deviation of its latents, not one sample of
them. A training step computes mean + std * noise, so the VAE's own noise differs in each epoch, as
it does without a cache.

The key of an item is a hash of everything it depends on: for an image its content (contamination
included), the model and the resolution; for a caption its text and the model. So no item is ever
stale, and runs that share a folder share equal items.

Size: an image takes 8 bytes per latent value (mean and std in float32, the precision used without a
cache). A caption is stored in its encoder's dtype; the figures are for float16. Equal captions are
stored once.

    model   image, 512 pixels   image, 1024 pixels   caption
    SD 1.x  131 kB                                   118 kB
    SDXL                        524 kB               318 kB
    SD 3                        2.1 MB
    FLUX                        2.1 MB               4.2 MB
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latent_robust.errors import InputError
from latent_robust.files import writing

from .encoding import (
    Plan,
    encode_captions,
    encode_images,
    encode_missing,
    with_tag,
)
from .shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator

    from latent_robust.data.contamination.pair_dataset import ContaminatedPairs
    from latent_robust.latent.base.components import Components


class LatentCache(Dataset):
    """The result of `build_cache`: encoded pairs, read from disk on demand.

    Works in the workers of a DataLoader, forked or spawned: it holds no images and no models.
    empty_text: text conditions of a dropped caption, each (1, ...); summary: a sentence that says
    how much was encoded.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Plan,
        pairs: ContaminatedPairs,
        empty_text: dict[str, Tensor],
        summary: str,
    ):
        self.empty_text, self.summary = empty_text, summary
        self._shards = shards
        self._image_keys, self._caption_keys = plan.image_keys, plan.caption_keys
        self._tagged_keys, self._tag_keys = plan.tagged_keys, plan.tag_keys
        self._sizes = torch.tensor([pairs.framing(i) for i in range(len(pairs))])
        self._buckets = pairs.buckets()

    def __len__(self) -> int:
        return len(self._image_keys)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """indices: of pairs that share a bucket.

        =>  index (B,); mean, std (B, c, h, w) float32, of scaled latents; text {name: (B, ...)},
        and with tags also `tagged`, of the captions with them, and `tag`, of them alone; size
        (B, 6), from `framing`. InputError if a shard was deleted.
        """
        indices = torch.as_tensor(indices)
        rows = indices.tolist()
        return {
            "index": indices,
            **self._shards.read([self._image_keys[i] for i in rows]),
            **{
                name: self._shards.read([keys[i] for i in rows])
                for name, keys in (
                    ("text", self._caption_keys),
                    ("tagged", self._tagged_keys),
                    ("tag", self._tag_keys),
                )
                if keys
            },
            "size": self._sizes[indices],
        }

    def buckets(self) -> list[list[int]]:
        """Indices by bucket. An index occurs as often as the pair counts in an epoch."""
        return self._buckets


class Uncached(Dataset):
    """The same items as LatentCache, encoded on demand. The components must stay loaded.

    They equal the cached items bit for bit if they are encoded in the same batches, else up to
    rounding: with another batch size, matrix products are summed in another order. If the
    components are on a GPU, the DataLoader must have no workers: CUDA does not survive forking.
    """

    def __init__(
        self,
        pairs: ContaminatedPairs,
        components: Components,
        tags: Sequence[str] | None = None,
    ):
        self._pairs, self._components, self._tags = pairs, components, tags
        self.empty_text = components.empty_text()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """As LatentCache."""
        indices = torch.as_tensor(indices)
        rows = indices.tolist()
        texts = {"text": [self._pairs.caption(i) for i in rows]}
        if self._tags is not None:
            texts["tag"] = [self._tags[i] for i in rows]
            texts["tagged"] = list(map(with_tag, texts["text"], texts["tag"]))
        return {
            "index": indices,
            **encode_images(self._components, self._pairs, rows),
            **{name: encode_captions(self._components, text) for name, text in texts.items()},
            "size": torch.tensor([self._pairs.framing(i) for i in rows]),
        }

    def buckets(self) -> list[list[int]]:
        """As LatentCache."""
        return self._pairs.buckets()


def build_cache(
    pairs: ContaminatedPairs,
    components: Components,
    folder: Path,
    *,
    batch_size: int,
    accelerator: Accelerator | None = None,
    tags: Sequence[str] | None = None,
) -> LatentCache:
    """Encode all items that `folder` does not hold yet, and open the cache.

    tags: of each pair, words for dirt; captions are then encoded with and without them.

    With several processes each encodes its share, and all get the whole cache. A build that was
    killed resumes after its last shard with the same batches, so the result has the same bits.
    InputError if the disk is or would become full, or if the VAE overflows.
    """
    folder = Path(folder)
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    # The main process goes first: it removes damaged shards and reports each once.
    with accelerator.main_process_first() if accelerator else nullcontext(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shards = Shards(folder)
    if accelerator:
        accelerator.wait_for_everyone()  # all must see the same shards before one process writes
    plan = Plan(pairs, components.identity, batch_size, tags)
    captions = encode_missing(
        "text", plan.captions, partial(encode_captions, components), shards, rank, ranks
    )
    images = encode_missing(
        "latents", plan.images, partial(encode_images, components, pairs), shards, rank, ranks
    )
    if accelerator:
        accelerator.wait_for_everyone()
    shards = Shards(folder)
    keys = (*plan.image_keys, *plan.caption_keys, *plan.tagged_keys, *plan.tag_keys)
    if not all(key in shards for key in keys):
        raise InputError(
            f"{folder} lacks items that were just encoded. All processes must use the same folder, "
            "and nothing may be deleted in it during a run; start again, or choose another "
            "--cache-dir"
        )
    summary = (
        f"encoded {images.encoded:,} images and {captions.encoded:,} captions "
        f"({images.cached:,} and {captions.cached:,} were cached already)"
    )
    return LatentCache(shards, plan, pairs, components.empty_text(), summary)
