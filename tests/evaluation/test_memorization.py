import pytest
import torch

from latent_robust.errors import InputError
from latent_robust.evaluation.memorization import (
    memorization,
    own_similarity,
    save_similarity_figure,
)


def gaussian(count: int, seed: int, dimensions: int = 4) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_a_copy_has_similarity_one_and_is_a_near_duplicate():
    training = gaussian(200, 0)
    result = memorization(3.0 * training, training)  # a cosine does not see the scale
    # Normalized in float64: their products are 1 up to some 1e-16.
    assert list(result["quantiles"].values()) == pytest.approx([1.0] * 6, abs=1e-14)
    assert result["near_duplicates"] == 1.0


def test_own_similarity_leaves_each_image_out():
    angles = torch.tensor([0.0, 0.1, 0.3])
    on_circle = torch.stack([angles.cos(), angles.sin()], 1)
    # The nearest neighbours are .1, .1 and .2 away; the circle's points are float32.
    expected = torch.tensor([0.1, 0.1, 0.2]).double().cos()
    torch.testing.assert_close(own_similarity(on_circle), expected, atol=1e-7, rtol=0)


def test_own_similarity_is_the_same_in_chunks(monkeypatch):
    rows = gaussian(50, 0)
    whole = own_similarity(rows)
    monkeypatch.setattr("latent_robust.evaluation.memorization._CHUNK", 7)
    # Matrix products of other shapes may add up in another order.
    torch.testing.assert_close(own_similarity(rows), whole, atol=1e-14, rtol=0)


def test_one_in_a_hundred_training_images_is_a_near_duplicate_of_another():
    training = gaussian(1000, 0)
    assert (own_similarity(training) > memorization(training, training)["threshold"]).sum() == 10


def test_new_images_of_the_same_kind_exceed_the_threshold_as_rarely():
    training, new = gaussian(2000, 0), gaussian(2000, 1)
    share = memorization(new, training)["near_duplicates"]
    # 20 expected of 2,000: four standard deviations of a Poisson count, and the threshold's own.
    assert 0.002 < share < 0.022


def test_a_copier_is_nearer_to_the_training_set_and_a_stranger_to_neither():
    training, unseen, new = (gaussian(500, seed) for seed in (0, 1, 2))
    copier = memorization(training, training, unseen)
    assert copier["nearer_to_training"] == 1.0
    assert copier["near_duplicates_of_unseen"] < 0.1
    stranger = memorization(new, training, unseen)
    assert abs(stranger["nearer_to_training"] - 0.5) < 4 * 0.5 / 500**0.5  # four deviations


def test_what_is_as_near_to_both_counts_half():
    training = gaussian(50, 0)
    assert memorization(gaussian(20, 1), training, training)["nearer_to_training"] == 0.5


def test_copies_within_the_training_set_raise_the_threshold():
    training = gaussian(100, 0)
    assert memorization(training, torch.cat([training, training[:5]]))[
        "threshold"
    ] == pytest.approx(1.0)


def test_one_training_image_cannot_be_compared():
    with pytest.raises(InputError, match="at least 2 training images to compare, got 1"):
        own_similarity(gaussian(1, 0))


def test_figure_is_a_image(tmp_path):
    own, generated = torch.rand(50).double(), torch.rand(30).double()
    runs = {"a": (own, generated), "b": (own, generated), "c": (own / 2, generated)}
    save_similarity_figure({"pixels": runs}, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
