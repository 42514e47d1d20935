from itertools import islice

from latent_robust.training.batches import StepBatches


def test_every_epoch_holds_every_sample_once():
    indices = [i for batch in islice(StepBatches(10, 4, seed=0), 5) for i in batch]
    assert sorted(indices[:10]) == sorted(indices[10:20]) == list(range(10))
    assert indices[:10] != indices[10:20]


def test_batches_are_a_function_of_their_number():
    whole = list(islice(StepBatches(23, 5, seed=3), 12))
    assert whole[7:] == list(islice(StepBatches(23, 5, seed=3, start=7), 5))
    assert whole != list(islice(StepBatches(23, 5, seed=4), 12))


def test_ranks_share_one_sequence():
    alone = list(islice(StepBatches(23, 4, seed=0), 6))
    ranks = [list(islice(StepBatches(23, 2, seed=0, rank=r, ranks=2), 6)) for r in (0, 1)]
    assert alone == [a + b for a, b in zip(*ranks, strict=True)]
