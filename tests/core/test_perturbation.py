import pytest
import torch
from torch import nn

from latent_robust.core import RadiusSchedule, adversarial_perturbation, random_perturbation

RADIUS = torch.tensor([0.0, 0.05, 0.5, 1.0]).view(-1, 1, 1, 1)


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))


def attack(network, noisy, steps=1, seed=0):
    return adversarial_perturbation(
        lambda w: network(noisy + w),
        network(noisy),
        RADIUS,
        torch.Generator().manual_seed(seed),
        steps,
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
        lambda w: (x + w) @ matrix.T, x @ matrix.T, radius, torch.Generator().manual_seed(3)
    )
    start = random_perturbation(x, radius, torch.Generator().manual_seed(3))
    gradient = 2 * start @ matrix.T @ matrix
    assert torch.equal(w, (start + 0.3 * gradient.sign()).clamp(-0.3, 0.3))


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


@pytest.mark.parametrize(
    "wrong",
    [{"bias_min": 0.2, "bias_max": 0.1}, {"rho": -1}, {"scale": 0, "bias_min": 0, "bias_max": 0}],
)
def test_impossible_radii_are_refused(wrong):
    with pytest.raises(ValueError, match=r"got|radius of 0"):
        RadiusSchedule(**wrong)
