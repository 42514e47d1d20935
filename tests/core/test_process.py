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


@pytest.mark.parametrize("steps", [1000, 50])
def test_without_a_scheduler_flow_has_its_times(steps):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    process = NoiseProcess.flow(num_train_timesteps=steps)
    torch.testing.assert_close(process.times, scheduler.timesteps)
    sigma = process(process.times, torch.zeros(steps, 1))[1].flatten()
    torch.testing.assert_close(sigma, scheduler.timesteps / steps)
    assert torch.equal(NoiseProcess.flow().times, torch.arange(1000.0, 0, -1))


@pytest.mark.parametrize("process", ["discrete", "flow"])
@pytest.mark.parametrize("ratio", [0.05, 0.6, 4.0])
def test_no_time_is_nearer_to_a_noise_level_than_the_one_that_is_found(process, ratio):
    process = {
        "discrete": NoiseProcess.from_scheduler(DDPMScheduler()),
        "flow": NoiseProcess.flow(),
    }[process]
    alpha, sigma = process(process.times, torch.zeros(len(process.times), 1))
    away = ((sigma / alpha).flatten().log() - torch.tensor(ratio).log()).abs()
    found = process.times.tolist().index(process.time_of(ratio).item())
    # float32 here, float64 there: two neighbours may be equally near.
    assert away[found] <= away.min() + 1e-6
    assert away[found] < 0.02  # the grid's own spacing


def test_times_are_drawn_evenly_and_are_a_function_of_the_generator():
    """20,000 of 10 times: 0.012 are more than five standard errors of a share of 0.1."""
    process = NoiseProcess.from_alphas_cumprod(torch.linspace(0.99, 0.01, 10), "epsilon")
    times = process.draw_times(20_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(times, minlength=10) / 20_000
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.012, rtol=0)
    assert torch.equal(times, process.draw_times(20_000, torch.Generator().manual_seed(0)))


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
