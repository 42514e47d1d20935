"""Which samples make up which batch: a function of (seed, step, rank), so that a resumed run goes
on with exactly the samples it would have seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from latent_robust.core import derive_generator


class StepBatches(Sampler[list[int]]):
    """Batches of sample indices from batch number `start` on, without end.

    One endless sequence: permutation of epoch 0, of epoch 1, ...; batch b of rank r out of
    `ranks` is its slice [(b * ranks + r) * size, ... + size). No sample is dropped at the end of
    an epoch.
    """

    def __init__(
        self, length: int, size: int, seed: int, *, start: int = 0, rank: int = 0, ranks: int = 1
    ):
        self.length, self.size, self.seed = length, size, seed
        self.start, self.rank, self.ranks = start, rank, ranks
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[int]:
        first = (number * self.ranks + self.rank) * self.size
        return [self._at(position) for position in range(first, first + self.size)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if self._epoch[0] != epoch:
            generator = derive_generator(self.seed, "epoch", epoch)
            self._epoch = (epoch, torch.randperm(self.length, generator=generator).tolist())
        return self._epoch[1][offset]


def loader(dataset: Dataset, batches: StepBatches, workers: int, pin: bool) -> DataLoader:
    """dataset must have `__getitems__(indices)` that returns a whole batch as one dict."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        # An iterator otherwise takes its workers' base seed from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def _as_it_is(batch):
    return batch
