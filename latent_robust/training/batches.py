"""Which samples form which batch: a function of (seed, step, rank).

So a resumed run continues with exactly the samples that it would have had without the interruption.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latent_robust.core import Levels, NoiseProcess, derive_generator
from latent_robust.errors import InputError

LEAST_TRUSTED = 0.1  # share of trusted samples at each noise level, if there are any
# If each clean sample would be seen more often than this, a run draws samples first. Measured, with
# a tenth of the data clean: at 80 times (a LoRA, 1,000 steps of 16) drawing the noise level first
# takes captions from 60 to 74 % right at the same distance; at 1,768 times (digits, 5,000 steps of
# 64) clean images are memorized, and the distance in pixels is 0.304 instead of 0.228.
MOST_DRAWS = 300
TIMES = 10_000  # drawn, to know how high noise levels training goes
DrawTimes = Callable[[int, torch.Generator], Tensor]


class StepBatches(Sampler[list[int]]):
    """Endless batches of sample indices, from batch number `start` on.

    buckets: indices that may share a batch (images of one size; a single bucket if all have it). An
        index is repeated as often as it counts in an epoch.
    size: samples per batch. start: number of this rank's first batch.

    Each bucket is one endless sequence, its permutation of epoch 0, of epoch 1, ..., cut into
    batches. In epoch e a bucket contributes the batches that begin before its epoch e ends. These
    are shuffled among the buckets. So every bucket gets its exact share and no sample is dropped.
    Batch b of rank r is batch number b * ranks + r of the whole sequence.
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
        # Of the epoch in use: (epoch, its batches); bucket -> (epoch, its permutation).
        self._batches: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._permutations: dict[int, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[int]:
        """The indices of this rank's batch `number`."""
        bucket, first = self._place(number)
        return [self._index_at(bucket, position) for position in range(first, first + self.size)]

    def times(self, number: int) -> Tensor | None:
        """The times (size,) that were drawn for this rank's batch `number`; None: any will do."""
        return None

    def _place(self, number: int) -> tuple[int, int]:
        """The bucket of this rank's batch `number`, and the position of its first sample there."""
        overall = number * self.ranks + self.rank
        epoch = self._epoch_of(overall)
        return self._batches_of(epoch)[overall - self._batches_before(epoch)]

    def _batches_before(self, epoch: int) -> int:
        """How many batches of all buckets begin before this epoch."""
        return sum(self._bucket_batches_before(bucket, epoch) for bucket in self.buckets)

    def _bucket_batches_before(self, bucket: Sequence[int], epoch: int) -> int:
        """How many batches of this bucket begin before this epoch: rounded up."""
        return -(-epoch * len(bucket) // self.size)

    def _epoch_of(self, number: int) -> int:
        """The epoch in which batch `number` of the whole sequence begins."""
        epoch = number * self.size // sum(map(len, self.buckets))
        while self._batches_before(epoch) > number:  # each bucket rounds up by one batch at most
            epoch -= 1
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _batches_of(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, position of its first sample) of the batches that begin in this epoch."""
        if self._batches[0] != epoch:
            batches = [
                (number, batch * self.size)
                for number, bucket in enumerate(self.buckets)
                for batch in range(
                    self._bucket_batches_before(bucket, epoch),
                    self._bucket_batches_before(bucket, epoch + 1),
                )
            ]
            if len(self.buckets) > 1:
                generator = derive_generator(self.seed, "batches", epoch)
                order = torch.randperm(len(batches), generator=generator).tolist()
                batches = [batches[i] for i in order]
            self._batches = (epoch, batches)
        return self._batches[1]

    def _index_at(self, bucket: int, position: int) -> int:
        """The sample at this position of a bucket's endless sequence."""
        indices = self.buckets[bucket]
        epoch, offset = divmod(position, len(indices))
        if self._permutations.get(bucket, (-1,))[0] != epoch:
            tag = (epoch,) if len(self.buckets) == 1 else (epoch, bucket)
            generator = derive_generator(self.seed, "epoch", *tag)
            order = torch.randperm(len(indices), generator=generator).tolist()
            self._permutations[bucket] = (epoch, order)
        return indices[self._permutations[bucket][1][offset]]


class UsableBatches(StepBatches):
    """Batches in which every sample may be used at its own time.

    The times of a batch are drawn first, as in plain training; then, for each time, a sample of the
    bucket that may be used at that noise level, each with the same probability (Daras et al. 2025,
    "Ambient Diffusion Omni"). So no step is wasted on samples whose loss would be 0, and low noise
    levels are trained as often as without dirt. Trusted samples are drawn for at least a tenth of
    the times at each noise level.

    levels: of all samples in the buckets. draw_times: the task's. Where a bucket has no sample for
    a time, another time is drawn. Samples that no time of the process reaches are left out. Raises
    InputError if none is left.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        size: int,
        seed: int,
        *,
        levels: Levels,
        process: NoiseProcess,
        draw_times: DrawTimes,
        **position: int,
    ):
        self.process, self.draw_times = process, draw_times
        often = draw_times(TIMES, derive_generator(seed, "times"))
        highest = self._noise_levels(often).max()  # that training reaches, now and then
        usable = levels.usable_from.isfinite() & (levels.usable_from <= highest)
        super().__init__(only(buckets, usable), size, seed, **position)
        self._groups = [  # of each bucket: trusted and other samples, the soonest usable first
            [_soonest_first(bucket, levels, trusted) for trusted in (True, False)]
            for bucket in self.buckets
        ]

    def batch(self, number: int) -> list[int]:
        return self._drawn(number)[0]

    def times(self, number: int) -> Tensor:
        return self._drawn(number)[1]

    def _drawn(self, number: int) -> tuple[list[int], Tensor]:
        bucket, _ = self._place(number)
        groups = self._groups[bucket]
        soonest = min(least[0] for _, least in groups if len(least))
        generator = derive_generator(self.seed, "usable", number * self.ranks + self.rank)
        times = self.draw_times(self.size, generator)
        while (early := self._noise_levels(times) < soonest).any():
            times = torch.where(early, self.draw_times(self.size, generator), times)
        noise_levels = self._noise_levels(times)
        counts = [torch.searchsorted(least, noise_levels, right=True) for _, least in groups]
        trusted, others = counts
        share = trusted / (trusted + others)
        share = torch.where((trusted > 0) & (others > 0), share.clamp_min(LEAST_TRUSTED), share)
        group = (torch.rand(self.size, generator=generator) >= share).long()  # 0: trusted
        u = torch.rand(self.size, generator=generator)
        place = (u * torch.stack(counts).gather(0, group[None])[0]).long()
        rows = zip(group.tolist(), place.tolist(), strict=True)
        return [groups[g][0][p] for g, p in rows], times

    def _noise_levels(self, times: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha_sigma(times)
        return (sigma / alpha).float()


def only(buckets: Sequence[Sequence[int]], usable: Tensor) -> list[list[int]]:
    """The buckets with only the samples that are usable, (N,), bool. InputError if none is."""
    kept = [[index for index in bucket if usable[index]] for bucket in buckets]
    if not any(kept):
        raise InputError(
            "no sample is usable at any noise level; train without --levels, --audit or "
            "drop_noisy, or give samples that you vouch for (--trusted)"
        )
    return [bucket for bucket in kept if bucket]


def batches_for(
    levels: Levels,
    draws: int,
    buckets: Sequence[Sequence[int]],
    *,
    process: NoiseProcess,
    draw_times: DrawTimes,
    **settings: int,
) -> StepBatches:
    """Batches for samples of these levels. draws: samples of the whole run, on all ranks.

    The noise level is drawn first, unless that would show each clean sample more than MOST_DRAWS
    times; then samples are, and the objective gives those that are too noisy for their time the
    loss 0."""
    clean = int((levels.usable_from == 0).sum())
    if draws > MOST_DRAWS * max(1, clean) and not levels.trusted.any():
        return StepBatches(only(buckets, levels.usable_from.isfinite()), **settings)
    return UsableBatches(buckets, levels=levels, process=process, draw_times=draw_times, **settings)


def _soonest_first(
    bucket: Sequence[int], levels: Levels, trusted: bool
) -> tuple[list[int], Tensor]:
    """The samples of a bucket that are (not) trusted, and their `usable_from`, both ascending."""
    members = torch.tensor(bucket)
    members = members[levels.trusted[members] == trusted]
    least, order = levels.usable_from[members].sort(stable=True)
    return members[order].tolist(), least


def loader(dataset: Dataset, batches: StepBatches, workers: int, pin: bool) -> DataLoader:
    """dataset: has `__getitems__(indices)`, which returns a whole batch as one dict."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        persistent_workers=workers > 0,
        # Without it, an iterator takes its workers' base seed from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def _ignore_signals(worker: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer acts
    on them and needs its workers until it has saved; the workers end with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
