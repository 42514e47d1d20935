import pytest
import torch

from latent_robust.core import ATTACKS, Weighting, forecast_std

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
    with pytest.raises(ValueError, match="a band each"):
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


def test_what_has_no_forecast_is_refused():
    with pytest.raises(ValueError, match="displacement, gradient, random"):
        forecast_std(TAU, Weighting(), "pgd")
    with pytest.raises(ValueError, match="`normalized` and `band`"):
        forecast_std(TAU, Weighting("paper", 0.3))
