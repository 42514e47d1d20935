import math
from collections import Counter
from itertools import islice

import pytest
import torch

from latent_robust.core import Levels, NoiseProcess
from latent_robust.errors import InputError
from latent_robust.training.batches import StepBatches, UsableBatches


def ten():
    return [range(10)]


def test_every_epoch_holds_every_sample_once():
    indices = [i for batch in islice(StepBatches(ten(), 4, seed=0), 5) for i in batch]
    assert sorted(indices[:10]) == sorted(indices[10:20]) == list(range(10))
    assert indices[:10] != indices[10:20]


def test_batches_are_a_function_of_their_number():
    buckets = [range(23)]
    whole = list(islice(StepBatches(buckets, 5, seed=3), 12))
    assert whole[7:] == list(islice(StepBatches(buckets, 5, seed=3, start=7), 5))
    assert whole != list(islice(StepBatches(buckets, 5, seed=4), 12))


@pytest.mark.parametrize("buckets", [[range(23)], [range(7), range(7, 23)]])
def test_ranks_share_one_sequence(buckets):
    alone = list(islice(StepBatches(buckets, 4, seed=0), 12))
    ranks = [list(islice(StepBatches(buckets, 4, seed=0, rank=r, ranks=2), 6)) for r in (0, 1)]
    assert alone == [batch for pair in zip(*ranks, strict=True) for batch in pair]


def test_a_batch_is_of_one_group():
    buckets = [[0, 1], [10, 11, 12, 13, 14], [20]]
    for batch in islice(StepBatches(buckets, 4, seed=0), 50):
        assert len({i // 10 for i in batch}) == 1
        assert len(batch) == 4


def test_groups_have_their_exact_share():
    """After 4 epochs every length is a multiple of the batch: each sample was seen 4 times."""
    buckets = [[0, 1], [10, 11, 12, 13, 14], [20]]
    seen = Counter(i for batch in islice(StepBatches(buckets, 4, seed=0), 8) for i in batch)
    assert seen == dict.fromkeys([0, 1, 10, 11, 12, 13, 14, 20], 4)


def test_a_repeated_index_counts_as_often():
    seen = Counter(i for b in islice(StepBatches([[0, 1, 1, 1]], 4, seed=0), 5) for i in b)
    assert seen == {0: 5, 1: 15}


def test_a_resumed_run_sees_the_same_groups():
    buckets = [range(3), range(3, 20), range(20, 24)]
    whole = list(islice(StepBatches(buckets, 6, seed=1), 40))
    for start in (1, 13, 29):
        resumed = StepBatches(buckets, 6, seed=1, start=start)
        assert list(islice(resumed, 40 - start)) == whole[start:]


PROCESS = NoiseProcess.flow()


def usable(buckets, usable_from, size=8, trusted=None, **options):
    usable_from = torch.tensor(usable_from)
    return UsableBatches(
        buckets,
        size,
        3,
        levels=Levels(0 * usable_from.nan_to_num(posinf=0), usable_from, trusted),
        process=PROCESS,
        draw_times=PROCESS.draw_times,
        **options,
    )


def noise_levels(times):
    alpha, sigma = PROCESS.alpha_sigma(times)
    return sigma / alpha


def test_every_sample_of_a_batch_may_be_used_at_its_time():
    usable_from = [0.0, 0.0, 0.5, 2.0, math.inf, 0.3, 1.0]
    plan = usable([[0, 1, 2, 3], [4, 5, 6]], usable_from, size=4)
    seen = Counter()
    for number in range(300):
        indices, times = plan.batch(number), plan.times(number)
        seen.update(indices)
        assert len({index > 3 for index in indices}) == 1
        assert (noise_levels(times) >= torch.tensor(usable_from)[indices]).all()
    assert set(seen) == {0, 1, 2, 3, 5, 6}  # all, but for the one that is never usable


def test_times_are_drawn_as_for_clean_data_and_samples_evenly_among_the_usable():
    """Flow: s = t / (1 - t), so a sample with usable_from 1 is used in half of the times."""
    plan = usable([range(4)], [0.0, 0.0, 1.0, 1.0], size=100)
    times = torch.cat([plan.times(number) for number in range(200)])
    assert abs(times.mean() / 500 - 1) < 0.01
    seen = Counter(i for number in range(200) for i in plan.batch(number))
    # Low half: 2 samples share it; high half: 4. So 3/8, 3/8, 1/8, 1/8 of 20,000.
    for index, share in enumerate((3, 3, 1, 1)):
        assert seen[index] == pytest.approx(20_000 * share / 8, rel=0.06)


def test_usable_batches_resume_and_ranks_share_one_sequence():
    buckets, usable_from = [range(7), range(7, 12)], [0.0] * 6 + [0.7] * 6
    whole = list(islice(usable(buckets, usable_from), 12))
    assert whole[7:] == list(islice(usable(buckets, usable_from, start=7), 5))
    ranks = [list(islice(usable(buckets, usable_from, rank=r, ranks=2), 6)) for r in (0, 1)]
    assert whole == [batch for pair in zip(*ranks, strict=True) for batch in pair]


def test_where_no_sample_is_usable_another_time_is_drawn():
    plan = usable([range(3)], [3.0, 3.0, 4.0])
    assert all((noise_levels(plan.times(number)) >= 3).all() for number in range(50))


def test_nothing_usable_is_refused():
    with pytest.raises(InputError, match="no sample is usable at any noise level"):
        usable([range(2)], [math.inf, math.inf])


def test_trusted_samples_keep_a_tenth_of_each_noise_level():
    """One of 40 is trusted. Below s = 1 it is alone; above, it would be drawn once in 40 times."""
    trusted = torch.arange(40) == 7
    plan = usable([range(40)], torch.where(trusted, 0.0, 1.0).tolist(), 100, trusted)
    low, high = [], []
    for number in range(100):
        indices, s = torch.tensor(plan.batch(number)), noise_levels(plan.times(number))
        low += (indices[s < 1] == 7).tolist()
        high += (indices[s >= 1] == 7).tolist()
    assert all(low)
    assert sum(high) / len(high) == pytest.approx(0.1, rel=0.15)


def test_what_is_not_always_usable_is_left_out_where_only_clean_samples_are_wanted():
    """Noise in any channel, and other dirt that some noise level would hide."""
    levels = Levels(
        torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 0.0]]), torch.tensor([0.0, 0.0, 0.5])
    )
    assert levels.clean_only().usable_from.tolist() == [0, math.inf, math.inf]
    assert torch.equal(levels.clean_only().level, levels.level)
