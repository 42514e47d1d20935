from itertools import pairwise

import pytest
import torch
from torch import nn

from latent_robust.core import RadiusSchedule, adversarial_perturbation, random_perturbation

RADIUS = torch.tensor([0.0, 0.05, 0.5, 1.0]).view(-1, 1, 1, 1)


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))


def attack(network, noisy, steps=1, seed=0, **kind):
    still = network(noisy).detach()
    return adversarial_perturbation(
        lambda w: network(noisy + w) - still,
        noisy,
        RADIUS,
        torch.Generator().manual_seed(seed),
        steps,
        **kind,
    )


def test_random_perturbation_is_uniform_within_the_radius():
    w = random_perturbation(torch.zeros(4, 3, 200, 200), RADIUS, torch.Generator().manual_seed(0))
    assert (w.abs() <= RADIUS).all()
    # std of U(-r, r) is r / sqrt(3); 120,000 draws estimate it to about 0.15 %.
    torch.testing.assert_close(
        w.std(dim=(1, 2, 3)), RADIUS.flatten() / 3**0.5, rtol=0.01, atol=1e-12
    )


@pytest.mark.parametrize("steps", [1, 4])
def test_attack_respects_the_radius_and_displaces_more_than_its_random_start(network, steps):
    noisy = torch.randn(4, 2, 8, 8)
    w = attack(network, noisy, steps)
    start = random_perturbation(noisy, RADIUS, torch.Generator().manual_seed(0))
    assert (w.abs() <= RADIUS).all()
    assert not w.requires_grad

    def displacement(w):
        return (network(noisy + w) - network(noisy)).square().flatten(1).sum(1)

    assert (displacement(w)[1:] > displacement(start)[1:]).all()


def test_attack_on_a_linear_network_is_the_sign_of_its_gradient():
    matrix = torch.randn(6, 6)
    x, radius = torch.randn(3, 6), torch.full((3, 1), 0.3)
    w = adversarial_perturbation(
        lambda w: w @ matrix.T, x, radius, torch.Generator().manual_seed(3)
    )
    start = random_perturbation(x, radius, torch.Generator().manual_seed(3))
    gradient = 2 * start @ matrix.T @ matrix
    assert torch.equal(w, (start + 0.3 * gradient.sign()).clamp(-0.3, 0.3))


def test_without_a_gradient_it_goes_along_the_displacement_itself():
    matrix = torch.randn(6, 6)
    x, radius = torch.randn(3, 6), torch.full((3, 1), 0.3)
    w = adversarial_perturbation(
        lambda w: w @ matrix.T, x, radius, torch.Generator().manual_seed(3), by_gradient=False
    )
    start = random_perturbation(x, radius, torch.Generator().manual_seed(3))
    assert torch.equal(w, (start + 0.3 * (start @ matrix.T).sign()).clamp(-0.3, 0.3))


def test_the_displacement_of_an_optimal_denoiser_is_its_vector_jacobian_product():
    """Why no gradient is needed: the posterior mean of any data has a symmetric Jacobian. A mixture
    of three points in noise of 1, far from linear."""
    points = torch.randn(3, 5, dtype=torch.float64)

    def posterior_mean(y):
        return (-(y[:, None] - points).square().sum(2) / 2).softmax(1) @ points

    y, w = torch.randn(2, 4, 5, dtype=torch.float64)
    small = 1e-6 * w
    moved, product = torch.autograd.functional.vjp(posterior_mean, y, w)
    displacement = (posterior_mean(y + small) - moved) / 1e-6
    # A difference of first order: an error of 1e-6, and of rounding, 1e-16 / 1e-6.
    torch.testing.assert_close(displacement, product, atol=1e-5, rtol=1e-4)


def test_what_half_precision_does_not_see_goes_along_with_w():
    x, radius = torch.zeros(3, 6), torch.full((3, 1), 0.3)
    w = adversarial_perturbation(
        torch.zeros_like, x, radius, torch.Generator().manual_seed(3), by_gradient=False
    )
    assert torch.equal(w, 0.3 * w.sign())


def test_where_directions_move_fully_or_not_at_all_both_are_the_same():
    """J a projection, as where noise is far below the structure and far above the rest."""
    basis, _ = torch.linalg.qr(torch.randn(16, 5, dtype=torch.float64))
    ways = [
        adversarial_perturbation(
            lambda w: w @ (basis @ basis.T).float(),
            torch.zeros(100, 16),
            torch.ones(100, 1),
            torch.Generator().manual_seed(0),
            by_gradient=by_gradient,
        )
        for by_gradient in (True, False)
    ]
    # But for the few values so near 0 that rounding decides about their sign.
    assert (ways[0] != ways[1]).float().mean() < 1e-3


@pytest.mark.parametrize("steps", [2, 5])
def test_each_of_several_steps_is_two_and_a_half_radii_over_their_number(steps):
    """Madry et al. 2018: far enough to cross the ball from anywhere in it, and to turn round."""
    like, seen = torch.randn(4, 2, 8, 8), []

    def displacement(w):
        seen.append(w.detach().clone())
        return w

    w = adversarial_perturbation(
        displacement, like, RADIUS, torch.Generator().manual_seed(0), steps, by_gradient=False
    )
    assert len(seen) == steps
    for before, after in pairwise([*seen, w]):
        # `displacement` says: outwards.
        expected = (before + 2.5 / steps * RADIUS * before.sign()).clamp(-RADIUS, RADIUS)
        torch.testing.assert_close(after, expected)


def test_attack_leaves_gradients_and_random_state_alone(network):
    state = torch.get_rng_state()
    attack(network, torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_attack_works_inside_no_grad(network):
    with torch.no_grad():
        assert attack(network, torch.randn(4, 2, 8, 8)).abs().max() > 0


def test_radius_follows_the_noise_level_and_never_vanishes():
    sigma = torch.linspace(0, 1, 1001).view(-1, 1)
    r = RadiusSchedule(rho=2, scale=1, bias_min=8 / 255, bias_max=16 / 255)(sigma)
    assert (r >= sigma**2 + 8 / 255 - 1e-7).all()
    assert (r <= sigma**2 + 16 / 255 + 1e-7).all()


def test_the_bias_of_the_radius_is_uniform_and_new_for_each_sample_and_step():
    """At sigma = 0, where the radius is the bias. 2,000 samples: the tolerances are more than four
    standard errors of the mean and of the share in the lowest quarter."""
    generator = torch.Generator().manual_seed(0)
    schedule = RadiusSchedule(bias_min=0.1, bias_max=0.3)
    steps = [schedule(torch.zeros(2000, 1, 1, 1), generator).flatten() for _ in range(2)]
    for bias in steps:
        assert bias.min() >= 0.1
        assert bias.max() <= 0.3
        assert float(bias.mean()) == pytest.approx(0.2, abs=0.006)
        assert float((bias < 0.15).float().mean()) == pytest.approx(0.25, abs=0.04)
        assert len(bias.unique()) > 1900  # equal ones: float32 has 2^24 values in [0, 1)
    assert (steps[0] != steps[1]).float().mean() > 0.99
    again = schedule(torch.zeros(2000, 1, 1, 1), torch.Generator().manual_seed(0)).flatten()
    assert torch.equal(again, steps[0])


def test_the_radius_is_what_the_formula_says():
    sigma = torch.linspace(0, 1, 11).view(-1, 1)
    radius = RadiusSchedule(rho=3, scale=0.5, bias_min=0.2, bias_max=0.2)(sigma)
    torch.testing.assert_close(radius, 0.5 * sigma**3 + 0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bias_min": 0.2, "bias_max": 0.1},
        {"rho": -1},
        {"rho": float("nan")},
        {"scale": 0, "bias_min": 0, "bias_max": 0},
    ],
)
def test_impossible_radii_are_refused(wrong):
    with pytest.raises(ValueError, match=r"got|radius of 0"):
        RadiusSchedule(**wrong)
