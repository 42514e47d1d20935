"""The learned variance agrees with the formulas of its paper and with diffusers' sampler."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from latent_robust.core import NoiseProcess
from pixel.variance import VLB_WEIGHT, LearnedVariance

# ------------------------------------------------------------------------- learned variance

STEPS = 4000  # with the cosine schedule, as in the configurations
SCHEDULER = DDPMScheduler(
    num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2", variance_type="learned_range"
)
PROCESS = NoiseProcess.from_scheduler(SCHEDULER)


def denoiser_of(mean, variance):
    """LearnedVariance of a network that always answers the same."""
    output = SimpleNamespace(sample=torch.cat([mean, variance], dim=1))
    return LearnedVariance(lambda noisy, t: output, PROCESS)


def loss_of(sample, noise, t, mean, variance):
    t = torch.full((len(sample),), t)
    denoise = denoiser_of(mean, variance)
    rows = torch.arange(len(sample))
    assert torch.equal(denoise(PROCESS.add_noise(sample, noise, t), t, rows), mean)
    return denoise.loss(sample, t)


def images():
    sample = torch.rand(2, 3, 4, 4) * 2 - 1
    return sample, torch.randn_like(sample)


def posterior(t):
    """(beta, beta-tilde) of step t, float64; beta-tilde of step 0 is that of step 1."""
    abar = torch.cat([torch.ones(1), SCHEDULER.alphas_cumprod]).double()  # abar[t + 1] is step t
    t_tilde = max(t, 1)
    beta, beta_at = (1 - abar[i + 1] / abar[i] for i in (t, t_tilde))
    return beta, beta_at * (1 - abar[t_tilde]) / (1 - abar[t_tilde + 1])


@pytest.mark.parametrize("t", [0, 1, 2, 40, 1000, 2500, 3998, 3999])
def test_loss_equals_the_direct_computation(t):
    """Nichol & Dhariwal 2021, eq. 3-4, 7-8, 10-11, 15: densities by torch.distributions."""
    sample, noise = images()
    mean = noise + 0.3 * torch.randn_like(noise)
    variance = torch.rand_like(noise) * 2 - 1
    loss = loss_of(sample, noise, t, mean, variance)

    x, prediction, v = sample.double(), mean.double(), (variance.double() + 1) / 2
    abar = torch.cat([torch.ones(1), SCHEDULER.alphas_cumprod]).double()
    now, before = abar[t + 1], abar[t]
    beta, tilde = posterior(t)
    noisy = now.sqrt() * x + (1 - now).sqrt() * noise.double()
    predicted = (noisy - beta / (1 - now).sqrt() * prediction) / (1 - beta).sqrt()
    model = Normal(predicted, (v * beta.log() + (1 - v) * tilde.log()).exp().sqrt())
    if t == 0:
        nats = -model.log_prob(x)
    else:
        true = before.sqrt() * beta * x + (1 - beta).sqrt() * (1 - before) * noisy
        nats = kl_divergence(Normal(true / (1 - now), tilde.sqrt()), model)
    bits = nats.mean() / torch.tensor(2.0).double().log()
    # alpha is kept in float32: 1 - (alpha / alpha_before)^2 = 1e-5 at the first steps carries an
    # error of 6e-8 and a relative one of 0.6 %, of which the variance and the mean have one each.
    # The likelihood at t = 0 is 5 nats, of which that is 0.003.
    tolerance = 0.02 if t else 0.002
    assert loss.item() == pytest.approx(VLB_WEIGHT * STEPS * bits.item(), rel=tolerance)


@pytest.mark.parametrize("t", [1, 2, 40, 1000, 2500])
def test_loss_is_zero_when_the_network_gives_the_posterior(t):
    sample, noise = images()
    loss = loss_of(sample, noise, t, noise, torch.full_like(noise, -1))
    # KL = (d / std)^2 / 2 plus what exp(log) rounds (1e-6); d is 1e-7 of float32 at a standard
    # deviation of at least 2e-3. Times VLB_WEIGHT * STEPS / ln 2 = 6.
    assert abs(loss.item()) < 1e-5


@pytest.mark.parametrize("output", [-1.0, -0.5, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("t", [1, 2, 10])
def test_variance_is_interpolated_as_diffusers_samples_it(t, output):
    """With the mean exact, KL = (r - 1 + exp(-r)) / 2 of r = log variance - log beta-tilde."""
    sample, noise = images()
    variance = torch.full_like(noise, output)
    bits = loss_of(sample, noise, t, noise, variance).item() / (VLB_WEIGHT * STEPS)

    log_variance = [SCHEDULER._get_variance(t, torch.tensor(v)).double() for v in (output, -1.0)]
    r = log_variance[0] - log_variance[1]
    expected = ((r - 1 + torch.exp(-r)) / 2 / torch.tensor(2.0).double().log()).item()
    # r is the ratio of two variances that float32 gives to 0.6 % each (see above); absolutely,
    # the 1e-6 of exp(log).
    assert bits == pytest.approx(expected, rel=0.02, abs=2e-6)


@pytest.mark.parametrize("t", [0, 40])
def test_loss_teaches_the_variance_and_not_the_mean(t):
    sample, noise = images()
    mean = (noise + 0.1).requires_grad_()
    variance = torch.zeros_like(noise).requires_grad_()
    loss_of(sample, noise, t, mean, variance).backward()
    assert (mean.grad == 0).all()
    assert (variance.grad != 0).all()


def test_loss_is_about_the_first_pass_only():
    """The later ones are those of the penalty, at perturbed inputs."""
    sample, noise = images()
    t = torch.tensor([40, 900])
    noisy = PROCESS.add_noise(sample, noise, t)
    answers = [torch.cat([noise, torch.zeros_like(noise)], 1), torch.randn(2, 6, 4, 4)]
    denoise = LearnedVariance(
        lambda noisy, t: SimpleNamespace(sample=answers.pop(0) if answers else None), PROCESS
    )
    denoise(noisy, t, torch.arange(len(sample)))
    before = denoise.loss(sample, t)
    denoise(noisy + 1, t, torch.arange(len(sample)))
    assert torch.equal(denoise.loss(sample, t), before)
