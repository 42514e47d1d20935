import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from latent_robust import NoiseProcess, Parameterization


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_add_noise_agrees_with_the_scheduler(kind):
    scheduler = kind()
    process = NoiseProcess.from_scheduler(scheduler)
    sample, noise = torch.randn(2, 5, 3, 4, 4)
    t = torch.tensor([0, 1, 500, 998, 999])
    # The scheduler's own square roots are taken in float32, ours in float64.
    torch.testing.assert_close(
        process.add_noise(sample, noise, t),
        scheduler.add_noise(sample, noise, t),
        atol=2e-6,
        rtol=1e-5,
    )


def test_euler_gives_the_scaled_input_that_the_network_sees():
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    process = NoiseProcess.from_scheduler(scheduler)
    assert process.parameterization is Parameterization.V_PREDICTION
    sample, noise, t = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.tensor([400])
    exploding = scheduler.add_noise(sample, noise, scheduler.timesteps[599:600])
    seen = scheduler.scale_model_input(exploding, scheduler.timesteps[599])
    torch.testing.assert_close(process.add_noise(sample, noise, t), seen, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_agrees_with_the_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = NoiseProcess.from_scheduler(scheduler)
    assert process.parameterization is Parameterization.FLOW
    sample, noise = torch.randn(2, 3, 4, 8, 8)
    t = scheduler.timesteps[[10, 500, 990]]
    torch.testing.assert_close(
        process.add_noise(sample, noise, t),
        scheduler.scale_noise(sample, t, noise),
        atol=1e-6,
        rtol=1e-5,
    )
    assert torch.equal(process.times, scheduler.timesteps)


def test_the_scheduler_may_already_be_sampling():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    training_times = scheduler.timesteps.clone()
    scheduler.set_timesteps(4)
    assert torch.equal(NoiseProcess.from_scheduler(scheduler).times, training_times)


def test_variance_is_preserved_and_float32_even_for_bfloat16():
    process = NoiseProcess.from_scheduler(DDPMScheduler())
    like = torch.zeros(1000, 1, 1, 1, dtype=torch.bfloat16)
    alpha, sigma = process(torch.arange(1000), like)
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("t", [-1, 1000])
def test_times_outside_the_process_are_refused(t):
    process = NoiseProcess.from_scheduler(DDPMScheduler())
    with pytest.raises(IndexError, match=r"0\.\.999"):
        process(torch.tensor([t]), torch.zeros(1, 1))


def test_fractional_times_of_a_discrete_process_are_refused():
    with pytest.raises(TypeError, match="integer"):
        NoiseProcess.from_scheduler(DDPMScheduler())(torch.tensor([0.5]), torch.zeros(1, 1))


def test_an_unknown_scheduler_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"EDMEulerScheduler.*by hand"):
        NoiseProcess.from_scheduler(EDMEulerScheduler())


def test_a_multistep_sampler_of_flow_models_is_refused():
    """Its alphas_cumprod exist and are not the process."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++"
    )
    with pytest.raises(TypeError, match="FlowMatchEuler"):
        NoiseProcess.from_scheduler(scheduler)
