"""The toys' truths are true, and what measures them is exact."""

import math
import sys
from pathlib import Path

import pytest
import torch

from latent_robust.core import derive_generator
from latent_robust.evaluation.metrics import frechet_distance
from pixel.geometry.figures import LOW_NOISE, trajectories
from pixel.geometry.measures import (
    measure_points,
    off_truth,
    psnr,
    sliced_wasserstein,
    variance_kept,
)
from pixel.geometry.network import ResidualMLP
from pixel.geometry.task import (
    SAMPLING_STEPS,
    GeometryConfig,
    PointTask,
    generate_points,
    noise_scheduler,
    reconstruct,
)
from pixel.geometry.toys import TOYS, Dirt, make_toy
from pixel.geometry.train import MIDDLE, load_network, train
from pixel.geometry.truths import digit_subspace, oblique_plane, ring_of_gaussians

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-5  # of float32, on numbers of size 1 added up over 64 dimensions


@pytest.fixture
def generator():
    return derive_generator(0, "test")


# ---------------------------------------------------------------------- truths


@pytest.mark.parametrize("make", [oblique_plane, digit_subspace])
def test_a_subspace_holds_its_own_points(make, generator):
    truth = make()
    points = truth.draw(500, generator)
    assert torch.allclose(truth.project(points), points, atol=ROUNDING)
    assert off_truth(points, truth).max() < ROUNDING


@pytest.mark.parametrize("make", [oblique_plane, digit_subspace, ring_of_gaussians])
def test_to_project_twice_is_to_project_once(make, generator):
    truth = make()
    points = truth.origin + torch.randn(200, truth.dimension, generator=generator)
    once = truth.project(points)
    assert torch.allclose(truth.project(once), once, atol=ROUNDING)


@pytest.mark.parametrize("make", [oblique_plane, digit_subspace])
def test_a_projection_is_the_nearest_point(make, generator):
    truth = make()
    points = torch.randn(200, truth.dimension, generator=generator)
    left = points - truth.project(points)
    assert torch.allclose(left @ truth.basis.T, torch.zeros(1), atol=ROUNDING)


@pytest.mark.parametrize("name", TOYS)
def test_views_are_orthonormal(name):
    for view in make_toy(name).truth.views().values():
        assert torch.allclose(view @ view.T, torch.eye(2), atol=ROUNDING)


def test_a_step_along_the_normal_is_the_distance_from_the_plane(generator):
    truth = oblique_plane()
    normal = torch.tensor([1.0, 2.0, 3.0]) / math.sqrt(14)
    points = truth.draw(100, generator) + 0.3 * normal
    assert torch.allclose(off_truth(points, truth), torch.tensor(0.3), atol=ROUNDING)


def test_as_many_principal_components_as_pixels_keep_every_image():
    from latent_robust.data.sources.builtin import digits

    images = 2 * digits().images.flatten(1) - 1
    truth = digit_subspace(components=64)
    assert torch.allclose(truth.project(images), images, atol=ROUNDING)


def test_every_digit_is_drawn_once_in_a_round(generator):
    truth = digit_subspace()
    one, two = truth.draw(1797, generator), truth.draw(1797, generator)
    assert not torch.equal(one, two)
    assert torch.equal(one.unique(dim=0), two.unique(dim=0))


def test_components_have_the_spread_that_they_are_said_to_have(generator):
    truth = ring_of_gaussians(std=0.1)
    off = off_truth(truth.draw(20_000, generator), truth)
    # The mean square of 40,000 normals has a relative standard deviation of .7 %.
    assert off.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.02)


# ---------------------------------------------------------------------- dirt


def test_dirt_has_exact_shares(generator):
    points = torch.zeros(1000, 3)
    noisy = Dirt(noisy=0.9, std=0.2)(points, generator)
    assert (noisy != 0).any(1).sum() == 900
    both = Dirt(noisy=0.5, std=1e-3, outliers=0.2)(points, generator)
    moved = both.norm(dim=1)
    assert (moved > 0).sum() == 200 + 400
    assert both.abs().max() <= 2
    assert torch.equal(points, torch.zeros(1000, 3))


@pytest.mark.parametrize("name", TOYS)
def test_a_training_set_is_a_function_of_the_seed(name):
    toy = make_toy(name)
    assert torch.equal(toy.training_set(3), make_toy(name).training_set(3))
    assert not torch.equal(toy.training_set(3), toy.training_set(4))
    clean = toy.training_set(3, clean=True)
    untouched = (toy.training_set(3) == clean).all(1).double().mean().item()
    expected = (1 - toy.dirt.outliers) * (1 - toy.dirt.noisy)
    assert untouched == pytest.approx(expected, abs=1 / len(clean))


# ---------------------------------------------------------------------- measures


def test_frechet_distance_of_a_scaled_set_has_a_closed_form(generator):
    """C_b = c^2 C_a: |(1 - c) mean|^2 + (1 - c)^2 tr C_a."""
    a = 1 + torch.randn(300, 3, generator=generator).double()
    expected = 0.25 * (a.mean(0).square().sum() + a.var(0).sum()).item()
    assert frechet_distance(a, 0.5 * a) == pytest.approx(expected, rel=1e-6)


def test_sliced_wasserstein_of_a_shift(generator):
    line = torch.randn(100, 1, generator=generator)
    assert sliced_wasserstein(line, line + 0.7) == pytest.approx(0.7, rel=1e-5)
    points = torch.randn(100, 3, generator=generator)
    assert sliced_wasserstein(points, points[torch.randperm(100, generator=generator)]) == 0
    # Over random directions the mean square of a unit vector's shadow is 1/3, to 4 % (2 sigma).
    shifted = points + torch.tensor([0.3, 0.0, 0.0])
    assert sliced_wasserstein(points, shifted, directions=2000) == pytest.approx(
        0.3 / math.sqrt(3), rel=0.04
    )


def test_variance_kept_of_a_shrunk_set(generator):
    truth = oblique_plane()
    points = truth.draw(200, generator)
    assert variance_kept(0.5 * points, points, truth) == pytest.approx(0.25, rel=1e-5)
    normal = torch.linalg.cross(*truth.basis)
    off = points + torch.randn(200, 1, generator=generator) * normal
    assert variance_kept(off, points, truth) == pytest.approx(1, rel=1e-5)


def test_psnr_in_closed_form():
    zeros = torch.zeros(10, 2)
    assert psnr(zeros + 0.2, zeros) == pytest.approx(20, rel=1e-6)  # 4 / .04 = 10^2
    assert psnr(zeros, zeros) == math.inf


def test_the_truth_measures_as_true():
    toy = make_toy("plane")
    measured = measure_points(toy.fresh(500, seed=1), toy, seed=1)
    assert measured["frechet"] == pytest.approx(0, abs=1e-6)
    assert measured["sliced_wasserstein"] == 0
    assert measured["off_truth"] < ROUNDING
    assert measured["variance_kept"] == pytest.approx(1, rel=1e-6)
    assert measured["far"] == 0


# ---------------------------------------------------------------------- training and sampling


class OnePoint(torch.nn.Module):
    """The ideal epsilon network of a data set of one point."""

    def __init__(self, point, process):
        super().__init__()
        self.point, self.process = point, process
        self.config = ResidualMLP(len(point)).config

    def forward(self, x, t):
        alpha, sigma = self.process(t, x)
        point = self.point.view(-1, *[1] * (x.ndim - 2))
        return type("Output", (), {"sample": (x - alpha * point) / sigma})


def test_an_ideal_network_restores_and_draws_its_one_point(generator):
    point = torch.tensor([0.5, -1.0, 0.25])
    network = OnePoint(point, PointTask(torch.zeros(2, 3)).process)
    points = point.expand(20, 3)
    assert torch.allclose(reconstruct(network, points, MIDDLE, generator), points, atol=1e-4)
    assert torch.allclose(generate_points(network, 20, seed=0), points, atol=1e-4)
    paths = trajectories(network, seed=0)
    assert len(paths) == SAMPLING_STEPS + 1
    assert torch.allclose(paths[-1], point.expand_as(paths[-1]), atol=1e-4)


def test_times_of_the_figures_and_of_the_reconstruction():
    cumulative = noise_scheduler().alphas_cumprod
    ratio = ((1 - cumulative) / cumulative).sqrt()
    assert ratio[LOW_NOISE].item() == pytest.approx(0.2, abs=0.005)
    assert ratio[MIDDLE].item() == pytest.approx(0.52, abs=0.005)


def test_a_run_is_a_function_of_its_seed(tmp_path):
    def run(name, seed):
        out = tmp_path / name
        config = GeometryConfig(
            objective="robust-adversarial", steps=4, samples=20, seed=seed, out=out
        )
        measured = train(config)
        measured.pop("seconds")
        return measured, load_network(out).state_dict()

    (one, weights), (two, same), (other, _) = run("a", 0), run("b", 0), run("c", 1)
    assert one == two
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    assert one["metrics"] != other["metrics"]


def test_the_quick_form_of_the_script_runs_and_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "geometry", raising=False)
    import geometry

    options = ["mixture", "--quick", "--results", str(tmp_path)]
    assert geometry.main(options) == 0
    for figure in ("geometry-mixture.png", "geometry-mixture-fields.png"):
        assert 0 < (tmp_path / "figures" / figure).stat().st_size < 300_000
    lines = geometry.markdown("mixture", tmp_path / "geometry.json").splitlines()
    assert len(lines) == 2 + len(geometry.rows_of("mixture")) + 2

    def fail(config):
        raise AssertionError(f"run again: {config.out}")

    monkeypatch.setattr(geometry, "train", fail)
    results = tmp_path / "geometry.json"
    assert geometry.run_toy("mixture", [0], geometry.QUICK, tmp_path, results)
