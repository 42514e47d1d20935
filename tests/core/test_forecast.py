from math import pi

import pytest
import torch

from latent_robust.core import ATTACKS, Parameterization, Weighting, forecast_std

TAU = torch.tensor([3.0, 1.0, 0.5, 0.2, 0.05])


@pytest.mark.parametrize("weighting", [Weighting("band", 3, 0.5), Weighting("normalized", 0.3)])
def test_without_an_attack_it_is_the_closed_form(weighting):
    expected = torch.tensor([tau * weighting.std_ratio(tau) for tau in TAU.tolist()])
    torch.testing.assert_close(
        forecast_std(TAU, weighting, "random"), expected, rtol=2e-3, atol=1e-4
    )


def test_a_direction_within_a_channel_is_shrunk_by_its_band():
    bands, shares = (0.2, 0.6), torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 3)
    found = forecast_std(TAU, Weighting("band", 3, bands), "random", shares=shares)
    alone = [forecast_std(TAU, Weighting("band", 3, band), "random") for band in bands]
    torch.testing.assert_close(found, torch.cat([alone[0][:2], alone[1][2:]]))
    with pytest.raises(ValueError, match="one column per band"):
        forecast_std(TAU, Weighting("band", 3, bands))


@pytest.mark.parametrize("attack", ATTACKS)
def test_weight_zero_leaves_the_data_as_they_are(attack):
    spread = forecast_std(TAU, Weighting("band", 0, 0.5), attack)
    torch.testing.assert_close(spread, TAU, rtol=2e-3, atol=1e-4)


def test_an_attack_has_nothing_to_choose_where_all_directions_are_alike():
    tau = torch.full((5,), 0.4)
    random = forecast_std(tau, Weighting(), "random")
    for attack in ("displacement", "gradient"):
        torch.testing.assert_close(forecast_std(tau, Weighting(), attack), random)


def test_an_attack_shrinks_noise_more_and_structure_less():
    random, displacement, gradient = (
        forecast_std(TAU, Weighting(), attack) for attack in ("random", "displacement", "gradient")
    )
    assert (displacement[:2] > random[:2]).all()
    assert (gradient[:2] > displacement[:2]).all()
    assert gradient[-1] < displacement[-1] < random[-1]


def test_one_noise_direction_of_three_sees_about_the_threefold_weight():
    """As the oblique plane did when it was trained: RESULTS.md."""
    plane = torch.tensor([0.61, 0.61, 0.19])
    noise = forecast_std(plane, Weighting("band", 1, 0.3), "gradient")[2].item()
    low, high = (0.19 * Weighting("band", weight, 0.3).std_ratio(0.19) for weight in (3, 2))
    assert low < noise < high


def test_by_its_gradient_the_attack_on_a_sample_predictor_finds_structure():
    """Its prediction moves with the noise where there are data, that of epsilon where not."""
    epsilon, sample = (
        forecast_std(TAU, Weighting(), "gradient", kind) for kind in ("epsilon", "sample")
    )
    assert sample[0] < epsilon[0]
    assert sample[-1] > epsilon[-1]


@pytest.mark.parametrize("kind", ["v_prediction", "flow", "sample"])
def test_along_the_displacement_of_the_noise_all_parameterizations_are_one(kind):
    epsilon, other = (
        forecast_std(TAU, Weighting(), "displacement", name) for name in ("epsilon", kind)
    )
    torch.testing.assert_close(other, epsilon)


@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_v_and_flow_predictors_are_attacked_nearly_as_epsilon_at_low_noise(kind):
    weighting = Weighting("band", 3, 0.1)
    epsilon, other = (forecast_std(TAU, weighting, "gradient", name) for name in ("epsilon", kind))
    torch.testing.assert_close(other, epsilon, rtol=0.1, atol=0)


def test_the_forecast_does_not_depend_on_the_unit_of_the_data():
    """All of it scales with tau, and with the band."""
    forecast, scaled = (
        forecast_std(unit * TAU, Weighting("band", 3, unit * 0.5), "gradient") / unit
        for unit in (1.0, 10.0)
    )
    torch.testing.assert_close(scaled, forecast, rtol=1e-4, atol=0)


def forecast_by_hand(weighting, attack, kind):
    """Derived once more: how far the prediction of the optimal denoiser moves with the noise is a
    difference of two predictions, and the ODE is integrated in small steps of ln y."""
    parameterization, variance = Parameterization(kind), TAU.double() ** 2
    s = torch.logspace(3, -4, 4001, dtype=torch.float64)[:, None]
    alpha = (1 + s**2).rsqrt()
    sigma = s * alpha

    def predict(noise, shrunk):
        noisy = sigma * noise  # of the sample 0: the denoiser is linear
        clean = noisy / alpha * shrunk / (shrunk + s**2)
        return parameterization.target(clean, (noisy - alpha * clean) / sigma, alpha, sigma)

    shrunk = variance.expand(4001, -1)
    for _ in range(20):
        moves = predict(1.0, shrunk) - predict(0.0, shrunk)
        energy = moves**4 if attack == "gradient" else (s**2 / (shrunk + s**2)) ** 2
        share = 2 / pi * energy / energy.mean(1, keepdim=True) + 1 - 2 / pi
        shrunk = variance / (1 + weighting.weight * weighting.gate(alpha, sigma) * share)
    rate = s**2 / (shrunk + s**2)
    fall = ((rate[1:] + rate[:-1]) / 2 * s.log().diff(dim=0)).sum(0)
    return (1e6 + variance).sqrt() * fall.exp()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow", "sample"])
@pytest.mark.parametrize("attack", ["displacement", "gradient"])
def test_the_forecast_is_what_is_derived_by_hand(attack, kind):
    weighting = Weighting("band", 3, 0.5)
    found = forecast_std(TAU, weighting, attack, kind)
    # 600 steps against 4,001, five rounds of the fixed point against 20.
    torch.testing.assert_close(
        found, forecast_by_hand(weighting, attack, kind).float(), rtol=0.01, atol=2e-3
    )


def test_what_has_no_forecast_is_refused():
    with pytest.raises(ValueError, match="displacement, gradient, random"):
        forecast_std(TAU, Weighting(), "pgd")
    with pytest.raises(ValueError, match="`normalized` and `band`"):
        forecast_std(TAU, Weighting("paper", 0.3))
