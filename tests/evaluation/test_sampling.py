from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from latent_robust.core import NoiseProcess
from latent_robust.evaluation.sampling import generate_samples, last_step, sampling_scheduler

BASES = {
    "epsilon": DDPMScheduler(clip_sample=False),
    "v_prediction": DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler(),
}


class Ideal(torch.nn.Module):
    """The optimal network for Gaussian data of mean 0.3 and standard deviation `tau`."""

    def __init__(self, process: NoiseProcess, tau: float):
        super().__init__()
        self.process, self.tau, self.calls = process, tau, 0
        self.config = SimpleNamespace(in_channels=1, sample_size=4)

    def forward(self, x, t):
        self.calls += 1
        alpha, sigma = self.process(t, x)
        gain = alpha * self.tau**2 / (alpha**2 * self.tau**2 + sigma**2)
        sample = 0.3 + gain * (x - 0.3 * alpha)
        noise = (x - alpha * sample) / sigma
        return SimpleNamespace(
            sample=self.process.parameterization.target(sample, noise, alpha, sigma)
        )


def ideal(name: str, tau: float):
    scheduler = sampling_scheduler(BASES[name], "ddim")
    return Ideal(NoiseProcess.from_scheduler(BASES[name]), tau), scheduler


@pytest.mark.parametrize("name", BASES)
def test_a_network_that_knows_one_image_draws_it_wherever_it_is_stopped(name):
    for level in (0.05, 0.5, 5.0):
        network, scheduler = ideal(name, tau=0.0)
        generated = generate_samples(network, scheduler, 3, steps=20, seed=0, stop_at=level)
        torch.testing.assert_close(generated, torch.full((3, 1, 4, 4), 0.3), atol=1e-4, rtol=0)
        assert network.calls < 20 or level == 0.05


@pytest.mark.parametrize("name", BASES)
def test_noise_below_the_level_is_not_generated(name):
    """Stopped at s, with the clean estimate there: tau becomes tau^2 / sqrt(tau^2 + s^2)."""
    tau, level = 0.2, 0.6
    network, scheduler = ideal(name, tau)
    generated = generate_samples(network, scheduler, 500, steps=500, seed=0, stop_at=level)
    # Standard error from 8,000 pixels 0.8 %; 500 Euler steps about 1 %.
    assert float(generated.std()) == pytest.approx(tau**2 / (tau**2 + level**2) ** 0.5, rel=0.04)
    whole = generate_samples(network, scheduler, 500, steps=500, seed=0)
    assert float(whole.std()) == pytest.approx(tau, rel=0.04)


@pytest.mark.parametrize("level", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_the_last_step_is_the_last_one_above_the_level(steps, level):
    scheduler = sampling_scheduler(BASES["epsilon"], "ddim")
    scheduler.set_timesteps(steps)
    alpha, sigma = NoiseProcess.from_scheduler(scheduler)(
        scheduler.timesteps, scheduler.timesteps[:, None]
    )
    noises = (sigma / alpha).flatten()
    last = last_step(scheduler, level)
    assert noises[last] >= level > noises[last + 1]


def test_a_level_below_all_of_the_sampler_s_changes_nothing():
    network, scheduler = ideal("epsilon", 0.2)
    plain = generate_samples(network, scheduler, 3, steps=10, seed=0)
    assert torch.equal(
        generate_samples(network, scheduler, 3, steps=10, seed=0, stop_at=1e-6), plain
    )


@pytest.mark.parametrize(("steps", "whole"), [(250, True), (300, False)])
def test_steps_between_which_ddim_goes_astray_are_named(caplog, steps, whole):
    """It goes 1000 // 300 = 3 times on, where they are 3 or 4 apart."""
    network, _ = ideal("epsilon", tau=0.2)
    scheduler = sampling_scheduler(DDPMScheduler(timestep_spacing="trailing"), "ddim")
    generate_samples(network, scheduler, 1, steps=steps, seed=0)
    assert ("use 250" not in caplog.text) == whole
    scheduler.set_timesteps(steps)
    gaps = -scheduler.timesteps.diff()
    assert bool((gaps == 1000 // steps).all()) == whole
