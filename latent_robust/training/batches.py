"""Which samples make up which batch: a function of (seed, step, rank), so that a resumed run goes
on with exactly the samples it would have seen."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latent_robust.core import derive_generator
from latent_robust.errors import InputError


class StepBatches(Sampler[list[int]]):
    """Batches of sample indices from batch number `start` on, without end.

    buckets: indices that may share a batch (images of one size; one bucket if all are), an index
    as often as it counts in an epoch. Each bucket is one endless sequence, its permutation of epoch
    0, of epoch 1, ..., cut into batches; in epoch e it contributes those that begin before its
    epoch e ends, in shuffled order among the buckets. So each bucket has its exact share, nothing
    is dropped, and batch b of rank r is number b * ranks + r of the whole.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        size: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.buckets, self.size, self.seed = buckets, size, seed
        self.start, self.rank, self.ranks = start, rank, ranks
        self._order: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._permutations: dict[int, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[int]:
        number = number * self.ranks + self.rank
        epoch = self._epoch_of(number)
        bucket, first = self._batches_of(epoch)[number - self._before(epoch)]
        return [self._at(bucket, position) for position in range(first, first + self.size)]

    def _before(self, epoch: int) -> int:
        """How many batches begin before this epoch."""
        return sum(self._begun(bucket, epoch) for bucket in self.buckets)

    def _begun(self, bucket: Sequence[int], epoch: int) -> int:
        return -(-epoch * len(bucket) // self.size)

    def _epoch_of(self, number: int) -> int:
        epoch = number * self.size // sum(map(len, self.buckets))
        while self._before(epoch) > number:  # buckets round up: at most one batch each
            epoch -= 1
        while self._before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _batches_of(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, position of its first sample) of the batches that begin in this epoch."""
        if self._order[0] != epoch:
            batches = [
                (number, batch * self.size)
                for number, bucket in enumerate(self.buckets)
                for batch in range(self._begun(bucket, epoch), self._begun(bucket, epoch + 1))
            ]
            if len(self.buckets) > 1:
                generator = derive_generator(self.seed, "batches", epoch)
                order = torch.randperm(len(batches), generator=generator).tolist()
                batches = [batches[i] for i in order]
            self._order = (epoch, batches)
        return self._order[1]

    def _at(self, bucket: int, position: int) -> int:
        indices = self.buckets[bucket]
        epoch, offset = divmod(position, len(indices))
        if self._permutations.get(bucket, (-1,))[0] != epoch:
            where = (epoch,) if len(self.buckets) == 1 else (epoch, bucket)
            generator = derive_generator(self.seed, "epoch", *where)
            order = torch.randperm(len(indices), generator=generator).tolist()
            self._permutations[bucket] = (epoch, order)
        return indices[self._permutations[bucket][1][offset]]


def without_noisy(buckets: Sequence[Sequence[int]], levels: Tensor) -> list[list[int]]:
    """The buckets without the samples that have a level, (N,) or (N, C), above 0. InputError when
    that leaves none."""
    clean = levels.reshape(len(levels), -1).eq(0).all(1)
    kept = [[index for index in bucket if clean[index]] for bucket in buckets]
    if not any(kept):
        raise InputError("drop_noisy leaves no sample: all have a noise level; train without it")
    return [bucket for bucket in kept if bucket]


def loader(dataset: Dataset, batches: StepBatches, workers: int, pin: bool) -> DataLoader:
    """dataset must have `__getitems__(indices)` that returns a whole batch as one dict."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        persistent_workers=workers > 0,
        # An iterator otherwise takes its workers' base seed from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def _ignore_signals(worker: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process bucket. The trainer acts
    on them, and needs its workers until it has saved; they end with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch):
    return batch
