import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from latent_robust import NoiseProcess, Parameterization

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
def test_the_true_target_implies_the_true_noise(p):
    sample, noise, _, alpha, sigma = setting(p)
    noisy = alpha * sample + sigma * noise
    implied = p.to_noise(noisy, p.target(sample, noise, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(implied, noise)


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


DISCRETE = ["epsilon", "v_prediction", "sample"]
# Their square roots are taken in float32 of float32 sums, ours in float64.
FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}


def as_trained_by(scheduler, t):
    """=>  sample, noise, and our noisy and target, at times t (B,)."""
    process = NoiseProcess.from_scheduler(scheduler)
    sample, noise = torch.randn(2, len(t), 3, 4, 4)
    target = process.parameterization.target(sample, noise, *process(t, sample))
    return sample, noise, process.add_noise(sample, noise, t), target


@pytest.mark.parametrize("name", DISCRETE)
def test_input_and_target_are_those_of_diffusers(name):
    """`noise`, `get_velocity`, `sample`: what diffusers' train scripts regress on."""
    scheduler = DDPMScheduler(prediction_type=name)
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    sample, noise, noisy, target = as_trained_by(scheduler, t)
    theirs = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(sample, noise, t),
        "sample": sample,
    }
    torch.testing.assert_close(noisy, scheduler.add_noise(sample, noise, t), **FLOAT32)
    torch.testing.assert_close(target, theirs[name], **FLOAT32)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_input_and_target_of_flow_matching_are_those_of_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    t = scheduler.timesteps[[0, 10, 500, 999]]
    sample, noise, noisy, target = as_trained_by(scheduler, t)
    torch.testing.assert_close(noisy, scheduler.scale_noise(sample, t, noise), **FLOAT32)
    torch.testing.assert_close(target, noise - sample, **FLOAT32)


@pytest.mark.parametrize("name", DISCRETE)
def test_diffusers_sampler_finds_the_sample_in_our_target(name):
    scheduler = DDPMScheduler(prediction_type=name, clip_sample=False)
    t = torch.tensor([400])
    sample, _, noisy, target = as_trained_by(scheduler, t)
    found = scheduler.step(target, t.item(), noisy).pred_original_sample
    torch.testing.assert_close(found, sample, **FLOAT32)


def test_diffusers_flow_sampler_finds_the_sample_in_our_target():
    """One Euler step from sigma = 1 to 0."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    sample, _, noisy, target = as_trained_by(scheduler, scheduler.timesteps[:1])
    scheduler.set_timesteps(1)
    found = scheduler.step(target, scheduler.timesteps[0], noisy).prev_sample
    torch.testing.assert_close(found, sample, **FLOAT32)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="epsilon, v_prediction, flow, sample"):
        Parameterization("eps")
