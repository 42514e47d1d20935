import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from latent_robust.core import (
    AdversarialDenoising,
    Levels,
    NoiseProcess,
    RadiusSchedule,
    make_objective,
)

EPSILON = NoiseProcess.from_scheduler(DDPMScheduler())
PROCESSES = {
    "epsilon": EPSILON,
    "v_prediction": NoiseProcess.from_scheduler(DDPMScheduler(prediction_type="v_prediction")),
    "sample": NoiseProcess.from_scheduler(DDPMScheduler(prediction_type="sample")),
    "flow": NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler()),
}


def some_network(noisy, t, rows):
    return 0.3 * noisy + 0.1


def inputs(process, size=16):
    generator = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(2, size, 1, 4, 4, generator=generator)
    return sample, process.draw_times(size, generator), noise


def test_pseudo_huber_is_the_squared_error_where_errors_are_small():
    sample, t, noise = inputs(EPSILON)

    def almost(noisy, t, rows):
        return noise + 1e-3

    loss = make_objective("pseudo-huber", EPSILON, huber_c=1.0)(almost, sample, t, noise)
    # 2c (sqrt(d^2 + c^2) - c) = d^2 - d^4 / (4 c^2) + ...; in float32 the difference of two
    # numbers near 1 has an error of 1e-7, a tenth of d^2 = 1e-6.
    torch.testing.assert_close(loss.denoising, torch.full((16,), 1e-6), atol=2.5e-7, rtol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_hellinger_weighs_a_sample_by_the_exponential_of_its_error(name):
    """Small errors are squared errors; the influence of large ones vanishes, by exp(-e / c^2)."""
    process = PROCESSES[name]
    sample, t, noise = inputs(process)
    alpha, sigma = (x.flatten() for x in process(t, sample))
    c = (1 - 0.3) / (1 + sigma / alpha).square() + 0.3
    target = process.parameterization.target(sample, noise, *process(t, sample))
    distance = torch.full((16,), 0.0, requires_grad=True)

    def off(noisy, t, rows):
        return target + distance.view(-1, *[1] * (sample.ndim - 1))

    for error in (1e-2, 0.5, 5.0):
        with torch.no_grad():
            distance.fill_(error)
        objective = make_objective("hellinger", process, huber_c=0.3)
        loss = objective(off, sample, t, noise).denoising
        assert torch.allclose(loss, c**2 * (1 - (-(error**2) / c**2).exp()), rtol=2e-3)
        (influence,) = torch.autograd.grad(loss.sum(), distance)
        assert torch.allclose(influence, 2 * error * (-(error**2) / c**2).exp(), rtol=2e-3)


def test_pseudo_huber_grows_linearly_where_errors_are_large():
    sample, t, noise = inputs(EPSILON)
    losses = [
        make_objective("pseudo-huber", EPSILON)(lambda *_, d=d: noise + d, sample, t, noise).total
        for d in (1e4, 2e4)
    ]
    assert float(losses[1] / losses[0]) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("c", [0.1, 0.6])
@pytest.mark.parametrize("name", PROCESSES)
def test_pseudo_huber_is_the_loss_of_its_paper(name, c):
    """Khrapov et al. 2024 with the SNR schedule: element by element, in float64."""
    process = PROCESSES[name]
    sample, t, noise = inputs(process)
    loss = make_objective("pseudo-huber", process, huber_c=c)(some_network, sample, t, noise)
    alpha, sigma = (x.double() for x in process(t, sample))
    noisy = alpha * sample + sigma * noise
    error = some_network(noisy, t, None) - process.parameterization.target(
        sample.double(), noise.double(), alpha, sigma
    )
    s = sigma / alpha
    scale = (1 - c) / (1 + s) ** 2 + c
    expected = 2 * scale * ((error**2 + scale**2).sqrt() - scale)
    torch.testing.assert_close(
        loss.denoising.double(), expected.mean((1, 2, 3)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("c", [0.0, -0.1, 1.1])
def test_an_impossible_c_is_refused(c):
    with pytest.raises(ValueError, match=rf"\(0, 1\], got {c}"):
        make_objective("pseudo-huber", EPSILON, huber_c=c)


def test_input_perturbation_without_perturbation_is_plain_training():
    values = [
        make_objective(name, EPSILON, gamma=0)(some_network, *inputs(EPSILON)).total
        for name in ("input-perturbation", "ddpm")
    ]
    assert torch.equal(*values)


def test_input_perturbation_inflates_the_noise_of_the_input_only():
    zeros = torch.zeros(50_000, 1)
    t = torch.full((50_000,), 500)
    seen = {}

    def record(noisy, t, rows):
        seen["std"] = noisy.std()
        return noisy

    make_objective("input-perturbation", EPSILON, gamma=0.5)(
        record, zeros, t, torch.randn(zeros.shape, generator=torch.Generator().manual_seed(9))
    )
    _, sigma = EPSILON(t[:1], zeros)
    # Standard error of a standard deviation from 50,000 draws: 0.3 %.
    assert float(seen["std"] / sigma) == pytest.approx(1.25**0.5, rel=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_at_diff_trains_on_noise_within_the_radius_that_is_denoised_worse(name):
    process = PROCESSES[name]
    sample, t, noise = inputs(process)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)

    def loss(radius):
        objective = AdversarialDenoising(process, radius)
        generator = torch.Generator().manual_seed(1)
        return objective(lambda x, t, rows: network(x), sample, t, noise, generator)

    plain = make_objective("ddpm", process)(lambda x, t, rows: network(x), sample, t, noise)
    nearly = loss(RadiusSchedule(scale=0, bias_min=1e-7, bias_max=1e-7))
    torch.testing.assert_close(nearly.denoising, plain.denoising, rtol=1e-4, atol=1e-6)
    # One step from a random start may overshoot on a sample, hardly on their mean.
    assert loss(RadiusSchedule()).total > 1.2 * plain.total
    assert all(p.grad is None for p in network.parameters())


def test_at_diff_attacks_the_network_at_the_times_and_conditions_of_the_batch():
    sample, t, noise = inputs(EPSILON)
    calls = []

    def attacked(noisy, times, rows):
        calls.append((times.tolist(), rows.tolist()))
        return some_network(noisy, times, rows)

    make_objective("at-diff", EPSILON, attack_steps=2)(
        some_network, sample, t, noise, attacked=attacked
    )
    assert calls == [(t.tolist(), list(range(16)))] * 2


def test_at_diff_of_the_true_noise_has_nothing_to_attack():
    """A network that answers the moved noise itself is right wherever it is moved to."""
    sample, t, noise = inputs(EPSILON)
    alpha, sigma = EPSILON(t, sample)
    loss = make_objective("at-diff", EPSILON)(
        lambda x, t, rows: (x - alpha * sample) / sigma, sample, t, noise
    )
    torch.testing.assert_close(loss.denoising, torch.zeros(16), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_ambient_at_level_zero_is_plain_training(name):
    process = PROCESSES[name]
    sample, t, noise = inputs(process)
    plain = make_objective("ddpm", process)(some_network, sample, t, noise).denoising
    ambient = make_objective("ambient", process)(
        some_network, sample, t, noise, levels=Levels(torch.zeros(16))
    ).denoising
    # The same numbers in another order of operations; 1 / sigma magnifies float32 rounding.
    torch.testing.assert_close(ambient, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_ambient_is_minimised_by_the_clean_denoiser(name):
    """Clean data N(0, tau^2) seen through noise of a known level: the minimiser over x0_hat = a y_s
    must be the denoiser of the *clean* data, a = tau^2 / (tau^2 + s^2)."""
    process, tau, level, size = PROCESSES[name], 0.8, 0.4, 400_000
    generator = torch.Generator().manual_seed(0)
    clean, dirt, noise = torch.randn(3, size, 1, generator=generator)
    sample = tau * clean + level * dirt
    t = process.times[400:401].expand(size)
    alpha, sigma = process(t[:1], sample)
    assert sigma / alpha > level
    _, c_noise = process.parameterization.coefficients(alpha, sigma)
    gain = process.parameterization.sample_gain(alpha, sigma)
    objective = make_objective("ambient", process)

    def loss(a):
        def denoise(noisy, t, rows):
            return gain * a * noisy / alpha + c_noise * noisy / sigma

        levels = torch.full((size,), level)
        return objective(denoise, sample, t, noise, levels=Levels(levels)).total.double()

    low, middle, high = loss(0.0), loss(0.5), loss(1.0)
    minimiser = 0.5 - (high - low) / (4 * (low + high - 2 * middle))
    expected = tau**2 / (tau**2 + float(sigma / alpha) ** 2)
    # The sampling error of the covariance of sample and y_s is about s / (tau sqrt(400,000)),
    # 0.6 % at s = 3; the tolerance is three times that.
    assert float(minimiser) == pytest.approx(expected, rel=0.02)


def test_ambient_with_a_level_for_each_channel_is_ambient_in_each():
    generator = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(2, 5, 2, 4, 4, generator=generator)
    t, levels = torch.full((5,), 700), torch.tensor([[0.1, 0.4]]).expand(5, 2)
    objective = make_objective("ambient", EPSILON)

    def of(channels):
        return objective(
            lambda noisy, t, rows: noisy.tanh(),  # each value by itself
            sample[:, channels],
            t,
            noise[:, channels],
            levels=Levels(levels[:, channels]),
        ).denoising

    # Equal but for the order of the sum.
    assert torch.allclose(of([0, 1]), (of([0]) + of([1])) / 2, rtol=1e-5)


def test_ambient_uses_a_sample_at_no_less_noise_than_its_noisiest_channel_has():
    sample, noise = torch.randn(2, 2, 2, 4, 4)
    levels = torch.tensor([[0.0, 0.0], [0.0, 0.4]])
    loss = make_objective("ambient", EPSILON)(
        some_network, sample, torch.tensor([5, 5]), noise, levels=Levels(levels)
    )
    assert loss.denoising[0] > 0
    assert loss.denoising[1] == 0


def test_ambient_ignores_times_below_the_level():
    sample, noise = torch.randn(2, 2, 1, 4, 4)
    t = torch.tensor([5, 900])
    loss = make_objective("ambient", EPSILON)(
        some_network, sample, t, noise, levels=Levels(torch.tensor([0.4, 0.4]))
    )
    assert loss.denoising[0] == 0
    assert loss.denoising[1] > 0


@pytest.mark.parametrize("name", PROCESSES)
def test_ambient_begins_exactly_at_the_level(name):
    process = PROCESSES[name]
    sample, noise = torch.randn(2, 2, 1, 4, 4)
    t = process.time_of(0.5).repeat(2)
    alpha, sigma = (x.flatten() for x in process(t, sample))
    levels = sigma / alpha * torch.tensor([0.99, 1.01])
    loss = make_objective("ambient", process)(some_network, sample, t, noise, levels=Levels(levels))
    assert loss.denoising[0] > 0
    assert loss.denoising[1] == 0


def test_a_sample_counts_only_where_it_is_usable():
    sample, noise = torch.randn(2, 3, 1, 4, 4)
    t = EPSILON.time_of(0.5).repeat(3)
    levels = Levels(torch.zeros(3), torch.tensor([0.4, 0.6, torch.inf]))
    loss = make_objective("ambient", EPSILON)(some_network, sample, t, noise, levels=levels)
    plain = make_objective("ddpm", EPSILON)(some_network, sample, t, noise)
    assert torch.allclose(loss.denoising[0], plain.denoising[0], rtol=1e-4)
    assert loss.denoising[1:].tolist() == [0, 0]


def test_a_noisy_sample_counts_as_much_as_a_clean_one():
    """The loss is that of the clean sample's estimate: a gradient that does not shrink by 1 - k."""
    noise = torch.randn(1, 1, 4, 4)
    t = EPSILON.time_of(1.0).repeat(1)
    bias = torch.zeros((), requires_grad=True)

    def curvature(level):
        def denoise(noisy, t, rows):
            return noisy + bias

        loss = make_objective("ambient", EPSILON)(
            denoise, torch.zeros_like(noise), t, noise, levels=Levels(torch.tensor([level]))
        ).total
        (slope,) = torch.autograd.grad(loss, bias, create_graph=True)
        return torch.autograd.grad(slope, bias)[0].item()

    assert curvature(0.7) == pytest.approx(curvature(0.0), rel=1e-5)
    assert curvature(0.99) < 0.01 * curvature(0.0)  # nearly at its level, it says nothing


def test_ambient_without_levels_says_what_it_needs():
    with pytest.raises(ValueError, match="levels"):
        make_objective("ambient", EPSILON)(some_network, *inputs(EPSILON))
