"""Captions that do not fit their images are found by a model that reads captions."""

import math

import pytest
import torch

from latent_robust.audit.captions import audit_captions, judge_captions
from latent_robust.audit.judge import area
from latent_robust.core import NoiseProcess

COUNT = 400
PROCESS = NoiseProcess.flow()


def world(wrong_share=0.3, reads=1.0, kinds=8):
    """Samples around the mean that their true caption names, and a model that believes captions.

    =>  samples, captions, wrong (N,), denoise_with.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(kinds, 3, generator=generator)
    truth = torch.randint(kinds, (COUNT,), generator=generator)
    samples = means[truth][:, :, None] + 0.3 * torch.randn(COUNT, 3, 4, generator=generator)
    wrong = torch.rand(COUNT, generator=generator) < wrong_share
    other = (truth + torch.randint(1, kinds, (COUNT,), generator=generator)) % kinds
    said = torch.where(wrong, other, truth)
    captions = [f"kind {number}" for number in said.tolist()]

    def denoise_with(indices, places):
        rows = torch.tensor(indices)
        guess = reads * means[said[rows[places]]][:, :, None].expand(-1, -1, 4)

        def denoise(noisy, t):  # flow: v = noise - sample
            _, sigma = PROCESS(t, noisy)
            return (noisy - guess) / sigma

        return samples[rows], denoise

    return samples, captions, wrong, denoise_with


def audit(denoise_with, captions, buckets=(range(COUNT),)):
    return audit_captions(denoise_with, PROCESS, captions, buckets, batch=64)


def test_wrong_captions_are_doubted():
    _, captions, wrong, denoise_with = world()
    found = audit(denoise_with, captions)
    assert area(found.gain[~wrong], found.gain[wrong]) > 0.95
    assert (found.doubtful == wrong).double().mean() > 0.9
    assert f"{int(found.doubtful.sum())} of 400 captions do not help" in found.summary()


def test_the_gain_is_the_logarithm_of_the_ratio_of_the_errors():
    samples, captions, wrong, denoise_with = world(kinds=2)
    gain = audit(denoise_with, captions).gain
    guesses = {caption: guess(denoise_with, captions.index(caption)) for caption in set(captions)}
    for index in (0, 100, 399):
        own = guesses[captions[index]]
        (other,) = (value for caption, value in guesses.items() if caption != captions[index])
        errors = [(samples[index] - each).square().mean().item() for each in (other, own)]
        assert gain[index].item() == pytest.approx(math.log(errors[0] / errors[1]), rel=1e-3)
        assert (gain[index] < 0) == wrong[index]


def guess(denoise_with, index):
    """What the model takes a sample for, by its caption."""
    _, denoise = denoise_with([index], torch.tensor([0]))
    t, noisy = torch.tensor([500.0]), torch.zeros(1, 3, 4)
    _, sigma = PROCESS(t, noisy)
    return -(sigma * denoise(noisy, t))[0]


def test_a_model_that_does_not_read_captions_cannot_tell():
    _, captions, _, denoise_with = world(reads=0.0)
    found = audit(denoise_with, captions)
    assert not found.read
    assert not found.doubtful.any()
    assert "cannot tell" in found.summary()


def test_where_there_is_nothing_to_compare_with_nothing_is_doubted():
    _, captions, _, denoise_with = world()
    assert not audit(denoise_with, ["a cat"] * COUNT).read
    captions[7] = ""
    found = audit(denoise_with, captions)
    assert found.gain.isnan().nonzero().flatten().tolist() == [7]
    assert not found.doubtful[7]
    assert found.columns()["caption_gain"][7] is None


def test_a_batch_has_samples_of_one_bucket():
    _, captions, _, denoise_with = world()
    buckets = [list(range(0, COUNT, 2)), list(range(1, COUNT, 2))]
    seen = []

    def watched(indices, places):
        assert len({index % 2 for index in indices}) == 1
        seen.append(len(indices))
        return denoise_with(indices, places)

    audit(watched, captions, [bucket * 2 for bucket in buckets])
    assert sum(seen) == 4 * COUNT  # two levels, own and other; repeats count once


def test_the_threshold_makes_the_fewest_mistakes():
    """Wrong captions mirror those below 0; among good ones hardly any is below it."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0.3 * torch.randn(300, generator=generator)
    good = 1 + 0.3 * torch.randn(700, generator=generator)
    found = judge_captions(torch.cat([wrong, good])).doubtful
    mistakes = int((~found[:300]).sum() + found[300:].sum())
    thresholds = torch.linspace(-1, 2, 301)
    fewest = min(int((wrong >= t).sum() + (good < t).sum()) for t in thresholds)
    assert fewest <= mistakes <= fewest + 15  # of 1,000
    assert judge_captions(good).doubtful.sum() <= 2  # all fit
