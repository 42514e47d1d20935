import pytest
import torch

from latent_robust import Parameterization

ALL = list(Parameterization)
ids = [p.value for p in ALL]


def setting(parameterization):
    """float64, so that identities hold to rounding: (sample, noise, w, alpha, sigma)."""
    sample, noise, w = torch.randn(3, 6, 2, 4, 4, dtype=torch.float64)
    sigma = torch.linspace(0.05, 0.95, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    flow = parameterization is Parameterization.FLOW
    return sample, noise, w, (1 - sigma if flow else (1 - sigma**2).sqrt()), sigma


@pytest.mark.parametrize("p", ALL, ids=ids)
def test_shift_matches_target_difference(p):
    sample, noise, w, alpha, sigma = setting(p)
    moved = p.target(sample, noise + w, alpha, sigma) - p.target(sample, noise, alpha, sigma)
    torch.testing.assert_close(
        torch.as_tensor(p.shift(w, alpha, sigma)) * torch.ones_like(w), moved
    )


@pytest.mark.parametrize("p", ALL, ids=ids)
def test_the_true_target_implies_the_true_sample(p):
    sample, noise, _, alpha, sigma = setting(p)
    noisy = alpha * sample + sigma * noise
    implied = p.to_sample(noisy, p.target(sample, noise, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(implied, sample)


@pytest.mark.parametrize("p", ALL, ids=ids)
def test_moving_input_and_prediction_together_leaves_the_implied_sample(p):
    """The one sentence that all four rows of the table say."""
    sample, noise, w, alpha, sigma = setting(p)
    noisy, prediction = alpha * sample + sigma * noise, torch.randn_like(sample)
    before = p.to_sample(noisy, prediction, alpha, sigma)
    after = p.to_sample(noisy + sigma * w, prediction + p.shift(w, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("p", ALL, ids=ids)
def test_sample_gain_turns_sample_errors_into_prediction_errors(p):
    sample, noise, error, alpha, sigma = setting(p)
    noisy = alpha * sample + sigma * noise
    prediction = p.target(sample, noise, alpha, sigma)
    wrong = prediction + p.sample_gain(alpha, sigma) * error
    torch.testing.assert_close(p.to_sample(noisy, wrong, alpha, sigma), sample + error)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="epsilon, v_prediction, flow, sample"):
        Parameterization("eps")
