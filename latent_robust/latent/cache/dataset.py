"""Every image and caption encoded once, so that the VAE and the text encoders can be unloaded.

Of an image the mean and the standard deviation of its latents are kept, not one draw from them: a
training step draws mean + std * noise, and the VAE's own noise is different in each epoch, as it is
without a cache. An item is found by what it depends on, the content of the image (contamination
included), the model and the resolution, or the caption and the model; so it is never stale, and
runs that share a folder share what they have in common.

Size: 8 bytes per latent value (mean and std in float32, the precision in which they are drawn
without a cache): 131 kB for an image of 512 pixels in SD 1.x, 524 kB for 1024 in SDXL, 2.1 MB for
1024 in SD 3 and FLUX; a caption in its encoder's dtype: in float16 118 kB in SD 1.x, 318 kB in
SDXL, 4.2 MB in FLUX. Equal captions are stored once.
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
)
from .shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator

    from latent_robust.data.contamination.pair_dataset import ContaminatedPairs
    from latent_robust.latent.base.components import Components


class LatentCache(Dataset):
    """What `build_cache` gives: the encoded pairs, read from disk as they are needed.

    Goes to the workers of a DataLoader, forked or spawned, without pairs or models.
    empty_text: what caption dropout trains with, each (1, ...); summary: a sentence about what was
    encoded.
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
        self._sizes = torch.tensor([pairs.framing(i) for i in range(len(pairs))])
        self._buckets = pairs.buckets()

    def __len__(self) -> int:
        return len(self._image_keys)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """indices: of pairs that share a bucket.

        =>  index (B,); mean, std (B, c, h, w) float32, of scaled latents; text {name: (B, ...)};
        size (B, 6), of `framing`. InputError if a shard is gone.
        """
        indices = torch.as_tensor(indices)
        rows = indices.tolist()
        return {
            "index": indices,
            **self._shards.read([self._image_keys[i] for i in rows]),
            "text": self._shards.read([self._caption_keys[i] for i in rows]),
            "size": self._sizes[indices],
        }

    def buckets(self) -> list[list[int]]:
        """Indices by bucket, one as often as it counts in an epoch."""
        return self._buckets


class Uncached(Dataset):
    """The same items, encoded as they are asked for. The components must stay loaded.

    They equal the cached ones bit for bit when they are encoded in the same batches, else to
    rounding: matrix products of another batch size are summed in another order. Not for a
    DataLoader with workers if the components are on a GPU, which does not survive forking.
    """

    def __init__(self, pairs: ContaminatedPairs, components: Components):
        self._pairs, self._components = pairs, components
        self.empty_text = components.empty_text()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """As LatentCache."""
        indices = torch.as_tensor(indices)
        rows = indices.tolist()
        return {
            "index": indices,
            **encode_images(self._components, self._pairs, rows),
            "text": encode_captions(self._components, [self._pairs.caption(i) for i in rows]),
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
) -> LatentCache:
    """Encode what `folder` does not hold yet.

    With several processes each encodes its share and all of them get the whole. A build that was
    killed goes on where its last shard ended, with the same batches, so with the same bits. Raises
    InputError if the disk is or would become full, or if the VAE overflows.
    """
    folder = Path(folder)
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    # The main process removes damaged shards, and names them once.
    with accelerator.main_process_first() if accelerator else nullcontext(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shards = Shards(folder)
    if accelerator:
        accelerator.wait_for_everyone()  # all must see the same before the first one writes
    plan = Plan(pairs, components.identity, batch_size)
    captions = encode_missing(
        "text", plan.captions, partial(encode_captions, components), shards, rank, ranks
    )
    images = encode_missing(
        "latents", plan.images, partial(encode_images, components, pairs), shards, rank, ranks
    )
    if accelerator:
        accelerator.wait_for_everyone()
    shards = Shards(folder)
    if not all(key in shards for key in (*plan.image_keys, *plan.caption_keys)):
        raise InputError(
            f"{folder} lacks what was just encoded: it must be one folder for all processes, and "
            "nothing may be deleted there while it is being used"
        )
    summary = (
        f"encoded {images.encoded:,} images and {captions.encoded:,} captions "
        f"({images.cached:,} and {captions.cached:,} were cached already)"
    )
    return LatentCache(shards, plan, pairs, components.empty_text(), summary)
