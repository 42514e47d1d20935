from collections import Counter
from itertools import islice

import pytest
import torch

from latent_robust.errors import InputError
from latent_robust.training.batches import StepBatches, without_noisy


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


def test_a_sample_with_noise_in_any_channel_is_left_out_and_so_is_an_empty_bucket():
    levels = torch.tensor([[0, 0], [0, 0.1], [0.1, 0], [0, 0], [0.2, 0.2]])
    assert without_noisy([[0, 1, 0, 3], [2, 4]], levels) == [[0, 0, 3]]
    assert without_noisy([range(3), [4, 3]], levels[:, 0]) == [[0, 1], [3]]
    with pytest.raises(InputError, match="leaves no sample"):
        without_noisy([[1, 2], [4]], levels)
