import json

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from latent_robust.errors import InputError
from latent_robust.evaluation.features import Extractor, make_extractor
from latent_robust.evaluation.metrics import (
    FeatureCache,
    detail,
    evaluate,
    frechet_distance,
    kernel_distance,
    mind,
    nearest_distance,
    nearest_similarity,
    precision_recall,
    residual_noise,
)


def gaussian(count: int, *shape: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def whitened(count: int, dimensions: int, seed: int) -> torch.Tensor:
    """A sample of mean exactly 0 and covariance exactly the identity."""
    x = gaussian(count, dimensions, seed=seed).double()
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(torch.cov(x.T))
    return torch.linalg.solve_triangular(factor, x.T, upper=False).T


def test_frechet_distance_of_identical_sets_is_zero():
    x = gaussian(500, 16, seed=0)
    # Eigenvalues in float64 are good to 1e-16 times 16 dimensions; their roots to 1e-8 at worst.
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_gaussians_in_closed_form():
    x = whitened(400, 8, seed=1)
    shift, scale = torch.arange(8.0), torch.linspace(0.5, 2, 8)
    closed_form = shift.square().sum() + (1 - scale).square().sum()
    # The sample moments are exact, so only rounding in float64 remains.
    assert frechet_distance(x, x * scale + shift) == pytest.approx(closed_form.item(), rel=1e-6)


def test_frechet_distance_of_fewer_samples_than_dimensions_is_that_of_the_library():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 30, 40, generator=generator)
    statistics = [fid_features_to_statistics(x) for x in (a, 2 * b + 1)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    # The library takes roots of the eigenvalues of a product of singular matrices; theirs are 0
    # only up to the root of the rounding error.
    assert frechet_distance(a, 2 * b + 1) == pytest.approx(theirs, rel=1e-5)


def test_frechet_distance_is_symmetric():
    a, b = gaussian(300, 8, seed=0), 1.5 * gaussian(200, 8, seed=1) + 0.3
    # The two orders take the eigenvalues of transposed products: equal up to rounding.
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_kernel_distance_of_one_distribution_is_zero_within_its_std():
    mean, std = kernel_distance(gaussian(400, 8, seed=0), gaussian(400, 8, seed=1), seed=0)
    # The mean of 100 subsets of half the set varies about as much as one of them.
    assert abs(mean) < 3 * std
    assert std > 0


def test_kernel_distance_between_points_in_closed_form():
    a, b = torch.zeros(8, 4), torch.full((8, 4), 2.0)
    # k(x, y) = (x y / 4 + 1)^3: k(a, a) = k(a, b) = 1, k(b, b) = 5^3.
    assert kernel_distance(a, b) == (1 + 125 - 2, 0)


def test_kernel_distance_is_repeatable():
    a, b = gaussian(50, 4, seed=0), gaussian(60, 4, seed=1)
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3)
    assert kernel_distance(a, b, seed=3) != kernel_distance(a, b, seed=4)


def test_precision_and_recall_of_identical_and_of_far_sets():
    x = gaussian(200, 4, seed=0)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_a_dropped_half_costs_recall_and_not_precision():
    real = torch.cat([gaussian(200, 4, seed=0), gaussian(200, 4, seed=1) + 100])
    precision, recall = precision_recall(real[:200], real)
    assert precision == 1
    assert recall == 0.5


def test_residual_noise_of_noise_is_its_standard_deviation():
    # 200 x 30^2 responses, correlated over 3x3: relative error about 0.2 %; 2 % is ten times that.
    noise = 0.3 * gaussian(200, 1, 32, 32, seed=0)
    assert residual_noise(noise) == pytest.approx(0.3, rel=0.02)


def test_residual_noise_does_not_see_planes():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    # Products of a function of x and a straight line in y cancel; float64 leaves 1e-14.
    plane = (0.1 * x + 0.2 * y + 0.01 * x**2 - 1)[None, None]
    assert residual_noise(plane) == pytest.approx(0, abs=1e-6)


def test_nearest_finds_the_copy():
    reference = gaussian(300, 1, 8, 8, seed=0)
    distance = nearest_distance(reference[:20], reference)
    assert distance.shape == (20,)
    # The distance to the nearest is taken directly, so a copy has exactly none.
    assert distance.max() == 0
    # The root of a sum of 64 squares in float32, each good to 6e-8.
    assert nearest_distance(reference[:1] + 0.5, reference[:1]).item() == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("count", [1, 7, 600])
def test_nearest_distance_does_not_depend_on_the_chunks(monkeypatch, count):
    images, reference = gaussian(count, 3, 8, 8, seed=0), gaussian(600, 3, 8, 8, seed=1)
    exact = torch.cdist(images.flatten(1).double(), reference.flatten(1).double()).amin(1)
    for chunk in (5, 512):
        monkeypatch.setattr("latent_robust.evaluation.metrics._CHUNK", chunk)
        distance = nearest_distance(images, reference)
        assert distance.dtype == torch.float32
        # Sums of 192 squares in float32: some 1e-7. Two neighbours that |x|^2 - 2 x y + |y|^2
        # confuses differ by about as little.
        torch.testing.assert_close(distance.double(), exact, rtol=1e-6, atol=0)


def test_nearest_distance_of_almost_copies_far_from_zero():
    # Squares of 100 in float32 are good to 1e-3 each, far more than what is to be measured.
    reference = 100 + gaussian(50, 1, 8, 8, seed=0)
    almost = reference + 2.0**-10
    # 64 equal steps of 2^-10, exact at 100 (spacing 2^-17): the root of 64 times 2^-10.
    assert torch.equal(nearest_distance(almost, reference), torch.full((50,), 8 * 2.0**-10))


def test_residual_noise_does_not_depend_on_the_chunks(monkeypatch):
    noise = gaussian(600, 1, 8, 8, seed=0)
    expected = residual_noise(noise)
    monkeypatch.setattr("latent_robust.evaluation.metrics._CHUNK", 7)
    # The order of a sum in float64.
    assert residual_noise(noise) == pytest.approx(expected, rel=1e-12)


def test_similarity_ignores_length_and_is_one_for_a_copy():
    reference = gaussian(50, 16, seed=0)
    similarity = nearest_similarity(3 * reference[:7], reference)
    torch.testing.assert_close(similarity, torch.ones(7).double())
    assert nearest_similarity(-reference[:1], reference[:1]).item() == pytest.approx(-1)


def test_evaluation_is_json_and_names_its_extractors():
    images = gaussian(60, 1, 8, 8, seed=0).clamp(-1, 1)
    extractors = [make_extractor("pixels"), make_extractor("digits")]
    result = evaluate(images[:30], images, extractors, training=images[:30])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["pixels"].keys() == result["digits"].keys()
    assert set(result["pixels"]) == {
        "frechet", "kid", "kid_std", "mind", "precision", "recall",
    }  # fmt: skip
    assert (result["samples"], result["reference"]) == (30, 60)
    assert result["nearest_distance"] == 0
    # Float32 features, so a cosine of 1 is good to 1e-6.
    assert result["training_similarity"] == pytest.approx({"mean": 1, "p95": 1}, abs=1e-6)


def test_features_are_extracted_once():
    calls = []

    def network(x):
        calls.append(len(x))
        return x.flatten(1)

    extractor = Extractor("counting", network, batch_size=1000)
    samples, dirty, clean = (gaussian(n, 1, 8, 8, seed=n) for n in (30, 40, 50))
    plain = [
        evaluate(samples, clean, [extractor], training=dirty),
        evaluate(dirty, clean, [extractor]),
    ]
    assert sorted(calls) == [30, 40, 40, 50, 50]
    calls.clear()
    kept, reference = FeatureCache(dirty), FeatureCache(clean)
    assert plain == [
        evaluate(samples, reference, [extractor], training=kept),
        evaluate(kept, reference, [extractor]),
    ]
    assert sorted(calls) == [30, 40, 50]


@pytest.mark.parametrize(
    "metric, count", [(frechet_distance, 1), (kernel_distance, 3), (precision_recall, 3)]
)
def test_too_few_samples_are_refused(metric, count):
    with pytest.raises(InputError, match=f"got {count} and 10"):
        metric(gaussian(count, 4, seed=0), gaussian(10, 4, seed=1))


def test_unequal_shapes_are_refused():
    with pytest.raises(InputError, match=r"\(9, 4\) and \(9, 5\)"):
        frechet_distance(torch.zeros(9, 4), torch.zeros(9, 5))
    with pytest.raises(InputError, match="same size"):
        nearest_distance(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="3x3"):
        residual_noise(torch.zeros(2, 1, 2, 8))


@pytest.mark.parametrize("count", [400, 250])
def test_mind_of_a_shift_is_its_square_and_of_equal_sets_zero(count):
    """Of sets of another size, quantiles are compared; they differ by sampling alone."""
    x = whitened(400, 6, seed=0)
    shift = torch.tensor([3.0, 0, 0, -4.0, 0, 0])
    assert mind(x, x) == 0
    # The squared cosine of a random direction with the shift is 1 / 6 on average; over 256
    # directions its standard error is 6 %.
    tolerance = 0.15 if count == 400 else 0.25
    assert mind(x[:count] + shift, x) == pytest.approx(25, rel=tolerance)
    assert mind(x[:count], x) < 0.3


def test_mind_sees_what_mean_and_covariance_do_not():
    normal = whitened(4000, 2, seed=0)
    signs = 2.0 * (torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)) < 0.5) - 1
    signs = (signs - signs.mean(0)).double()
    signs = signs / signs.std(0)
    assert frechet_distance(signs, normal) < 0.01
    assert mind(signs, normal) > 20 * mind(whitened(4000, 2, seed=2), normal)


def test_detail_rises_with_noise_and_falls_with_smoothing():
    images = gaussian(50, 3, 16, 16, seed=0)
    assert detail(images) == pytest.approx(
        1, rel=0.02
    )  # white noise of variance 1, at every frequency
    assert detail(2 * images) == pytest.approx(4 * detail(images))
    smooth = torch.nn.functional.avg_pool2d(images, 3, 1)
    assert detail(smooth) < 0.1
