from math import ceil

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.integrate import solve_ivp
from torch import nn

from latent_robust.core import (
    ATTACKS,
    OBJECTIVES,
    EquivariancePenalty,
    Levels,
    NoiseProcess,
    Objective,
    Parameterization,
    RadiusSchedule,
    Weighting,
    make_objective,
    shared_dropout,
)
from latent_robust.core.rows import choose_rows, rows_at_step

VP = ["epsilon", "v_prediction", "sample"]


def process_of(parameterization: str) -> NoiseProcess:
    if parameterization == "flow":
        return NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler())
    return NoiseProcess.from_scheduler(DDPMScheduler(prediction_type=parameterization))


class Network(nn.Module):
    """Small, smooth, with a batch row axis and optional dropout."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(8, 1, 3, padding=1),
        )

    def forward(self, noisy, t, rows):
        return self.layers(noisy)


def batch(process, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample, noise = torch.randn(2, size, 1, 6, 6, generator=generator)
    return sample, process.draw_times(size, generator), noise


def perturbed_input(penalty, denoise, noisy, t, prediction=None, generator=None):
    """What the network is given in the second branch."""
    inputs = []

    def branches(perturbed):
        inputs.append(perturbed)
        return perturbed.detach(), perturbed.detach()

    penalty.of_branches(branches, denoise, noisy, t, prediction, generator)
    return inputs[0]


@pytest.mark.parametrize("parameterization", [*VP, "flow"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_ideal_denoiser_of_one_image_is_equivariant(parameterization, attack):
    process = process_of(parameterization)
    image = torch.randn(1, 1, 6, 6)
    t = process.times[[100, 500, 900]]
    alpha, sigma = process(t, image)
    noisy = process.add_noise(image, torch.randn(3, 1, 6, 6), t)

    def ideal(noisy):
        noise = (noisy - alpha * image) / sigma
        return process.parameterization.target(image, noise, alpha, sigma) + 0 * noisy

    penalty = EquivariancePenalty(process, Weighting("normalized", 1.0), attack=attack)
    # Exactly 0 but for float32 rounding of the two predictions, which are of order 1.
    assert penalty(ideal, noisy, t, ideal(noisy)) < 1e-9


@pytest.mark.parametrize("parameterization", [*VP, "flow"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("how", ["latents in half", "autocast"])
def test_what_rounding_adds_to_w_is_not_penalized(parameterization, attack, how):
    """At little noise bfloat16 rounds noisy + sigma w by a good part of sigma w."""
    process = process_of(parameterization)
    image = torch.randn(1, 1, 6, 6)
    t = process.times[[2, 10, 40]]
    alpha, sigma = process(t, image)
    noisy = process.add_noise(image, torch.randn(3, 1, 6, 6), t)
    noisy = noisy.bfloat16() if how == "latents in half" else noisy

    def ideal(noisy):
        noise = (noisy.bfloat16().float() - alpha * image) / sigma
        return process.parameterization.target(image, noise, alpha, sigma) + 0 * noisy.float()

    options = {} if how == "latents in half" else {"precision": torch.bfloat16}
    penalty = EquivariancePenalty(process, Weighting("band", 1.0, 0.5), attack=attack, **options)
    assert penalty(ideal, noisy, t, ideal(noisy)) < 1e-6


@pytest.mark.parametrize("parameterization", ["epsilon", "flow"])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_rounding_does_not_change_the_weight(parameterization, precision):
    """A network that does not answer at all has the whole gate as its penalty, however much of w
    is rounding; at sigma = 0, where nothing can move, none."""
    process = process_of(parameterization)
    t = process.times[:60] if parameterization == "epsilon" else torch.linspace(0, 60, 60)
    noisy = torch.randn(60, 1, 8, 8)
    alpha, sigma = process(t, noisy)
    weighting = Weighting("band", 2.0, 0.5)
    penalty = EquivariancePenalty(process, weighting, attack="random", precision=precision)
    found = penalty.per_sample(torch.zeros_like, noisy, t, torch.zeros_like(noisy))
    expected = 2.0 * weighting.mean_gate(alpha, sigma) * (sigma.flatten() > 0)
    torch.testing.assert_close(found, expected)


def test_an_invariance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no invariance to compare with"):
        make_objective("invariance", process_of("sample"))


@pytest.mark.parametrize("name", ["robust-adversarial", "robust-random", "invariance"])
def test_zero_weight_equals_plain_training(name):
    process, network = process_of("epsilon"), Network(dropout=0.3)
    gradients = []
    for objective in (
        make_objective(name, process, weighting=Weighting(weight=0)),
        make_objective("ddpm", process),
    ):
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(1)
        network.zero_grad()
        sample, t, noise = batch(process)
        objective(network, sample, t, noise, generator).total.backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("parameterization", [*VP, "flow"])
@pytest.mark.parametrize("lam", [0.5, 3.0])
def test_gaussian_minimiser_matches_closed_form(parameterization, lam):
    """Data N(0, tau^2), denoiser x0_hat = a * y with y = noisy / alpha. The loss is quadratic in
    a; its minimum must be tau_e^2 / (tau_e^2 + s^2) with tau_e^2 = tau^2 / (1 + lambda)."""
    process, tau, size = process_of(parameterization), 0.7, 200_000
    generator = torch.Generator().manual_seed(0)
    sample = tau * torch.randn(size, 1, generator=generator)
    noise = torch.randn(size, 1, generator=generator)
    t = process.times[600:601] if parameterization == "flow" else process.times[200:201]
    t = t.expand(size)  # s of about 0.7
    alpha, sigma = (c[:1] for c in process(t[:1], sample))
    objective = make_objective(
        "robust-random",
        process,
        weighting=Weighting("normalized", lam),
        radius=RadiusSchedule(bias_min=0.1, bias_max=0.1),
    )
    _, c_noise = process.parameterization.coefficients(alpha, sigma)
    gain = process.parameterization.sample_gain(alpha, sigma)

    def loss(a: float) -> torch.Tensor:
        def denoise(noisy, t, rows):  # the prediction that implies the sample a * noisy / alpha
            return gain * a * noisy / alpha + c_noise * noisy / sigma

        return objective(denoise, sample, t, noise, torch.Generator().manual_seed(1)).total

    low, middle, high = (loss(a).double() for a in (0.0, 0.5, 1.0))  # a parabola has three numbers
    curvature = 2 * (low + high - 2 * middle)
    minimiser = 0.5 - (high - low) / (2 * curvature)
    s2 = float((sigma / alpha).square())
    tau_e2 = tau**2 / (1 + lam)
    # The sampling error of the covariance of sample and y is s / (tau sqrt(200,000)) = 0.2 %.
    assert float(minimiser) == pytest.approx(tau_e2 / (tau_e2 + s2), rel=0.01)


@pytest.mark.parametrize("parameterization", ["epsilon", "flow"])
def test_each_channel_has_the_minimiser_of_its_own_band(parameterization):
    """As above, of two channels that do not mix. Of many elements each, since a sample's w is
    divided by what it happened to be."""
    process, tau, size, bands = process_of(parameterization), 0.7, 1000, (0.2, 0.6)
    generator = torch.Generator().manual_seed(0)
    sample = tau * torch.randn(size, 2, 400, generator=generator)
    noise = torch.randn(size, 2, 400, generator=generator)
    t = process.times[600:601] if parameterization == "flow" else process.times[200:201]
    t = t.expand(size)
    alpha, sigma = (c[:1] for c in process(t[:1], sample))
    weighting = Weighting("band", 8.0, bands)
    objective = make_objective("robust-random", process, weighting=weighting)
    _, c_noise = process.parameterization.coefficients(alpha, sigma)
    gain = process.parameterization.sample_gain(alpha, sigma)
    s = float(sigma / alpha)
    for channel, band in enumerate(bands):

        def loss(a: float, channel=channel) -> torch.Tensor:
            factor = torch.zeros(1, 2, 1)
            factor[:, channel] = a

            def denoise(noisy, t, rows):
                return gain * factor * noisy / alpha + c_noise * noisy / sigma

            return objective(denoise, sample, t, noise, torch.Generator().manual_seed(1)).total

        low, middle, high = (loss(a).double() for a in (0.0, 0.5, 1.0))
        minimiser = 0.5 - (high - low) / (4 * (low + high - 2 * middle))
        tau_e2 = tau**2 / (1 + 8 * min(1, band / s) ** 2)
        assert float(minimiser) == pytest.approx(tau_e2 / (tau_e2 + s**2), rel=0.01)


@pytest.mark.parametrize("attack", ATTACKS)
def test_bands_that_are_alike_are_one_band(attack):
    process = process_of("epsilon")
    sample, t, noise = batch(process)
    sample, noise = sample.expand(-1, 3, -1, -1), noise.expand(-1, 3, -1, -1)
    losses = []
    for band in (0.3, (0.3, 0.3, 0.3)):
        objective = Objective(
            process, EquivariancePenalty(process, Weighting(band=band), attack=attack), 0.5
        )
        generator = torch.Generator().manual_seed(0)
        loss = objective(lambda noisy, t, rows: noisy.tanh(), sample, t, noise, generator)
        losses.append(loss.penalty)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("tau", [0.1, 0.4, 1.0, 4.0])
@pytest.mark.parametrize("preset", ["normalized", "band"])
def test_probability_flow_ends_at_the_predicted_spread(preset, tau):
    """dy/ds = (y - x0_hat) / s, integrated numerically with the very gate that trains: the closed
    form says how much noise and how much structure remain."""
    weighting = Weighting(preset, weight=3.0, band=0.5)

    def slope(s, y):
        alpha = torch.tensor((1 + s * s) ** -0.5, dtype=torch.float64)
        lam = 3.0 * float(weighting.gate(alpha, s * alpha))
        tau_e2 = tau**2 / (1 + lam)
        return y * s / (tau_e2 + s * s)

    far = 1000.0
    y = [(far**2 + tau**2) ** 0.5]
    for start, end in ((far, 0.5), (0.5, 1e-6)):  # the gate has a kink at the band
        y = solve_ivp(slope, (start, end), y, rtol=1e-8, atol=1e-12, method="LSODA").y[:, -1]
    # Starting at s = 1000 instead of infinity costs (tau^2 + lambda b^2) / 1000^2.
    assert y[0] / tau == pytest.approx(weighting.std_ratio(tau), rel=1e-4)


def test_band_removes_noise_and_keeps_structure():
    band, constant = Weighting("band", 3.0, 0.5), Weighting("normalized", 3.0)
    assert constant.std_ratio(0.1) == constant.std_ratio(4.0) == 0.5
    assert band.std_ratio(0.1) < 0.51
    assert band.std_ratio(4.0) > 0.9
    assert Weighting("band", 0.0, 0.5).std_ratio(0.3) == pytest.approx(1)


def test_gradient_flows_through_both_branches():
    """Training with a detached prediction diverges. Against a finite difference in a parameter."""
    process, network = process_of("epsilon"), Network()
    penalty = EquivariancePenalty(process, Weighting("normalized", 1.0), attack="random")
    sample, t, noise = batch(process)
    noisy = process.add_noise(sample, noise, t)

    def value():
        generator = torch.Generator().manual_seed(2)
        return penalty(lambda x: network.layers(x), noisy, t, network.layers(noisy), generator)

    value().backward()
    parameter = network.layers[0].weight
    direction = torch.randn_like(parameter)
    slope = (parameter.grad * direction).sum().item()
    with torch.no_grad():
        step = 1e-2
        parameter += step * direction
        above = value().item()
        parameter -= 2 * step * direction
        below = value().item()
    # Central difference: error of order step^2, and float32 rounding of 1e-7 / step.
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_rows_are_drawn_in_proportion_to_the_gate_without_bias():
    """Over many draws, the mean over the chosen rows is the gated mean over the batch."""
    generator = torch.Generator().manual_seed(0)
    gate = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.01, 0.0])
    anything = torch.tensor([3.0, -1.0, 2.0, 8.0, 5.0, 100.0])
    counts, means = torch.zeros(6), []
    for _ in range(20_000):
        rows, factor = choose_rows(gate, 2, generator)
        counts += torch.bincount(rows, minlength=6)
        means.append((factor * gate[rows] * anything[rows]).mean())
    # Systematic sampling: of 20,000 draws, a share of p (1 - p) / 20,000 is the variance at most.
    torch.testing.assert_close(counts / 20_000, 2 * gate / gate.sum(), atol=0.01, rtol=0)
    assert float(torch.stack(means).mean()) == pytest.approx(float((gate * anything).mean()), 0.02)


def test_rows_of_an_even_gate_are_all_different():
    rows, factor = choose_rows(torch.full((64,), 0.3), 8, torch.Generator().manual_seed(1))
    assert len(rows.unique()) == 8
    torch.testing.assert_close(factor, torch.ones(8))


def test_where_the_gate_is_shut_everywhere_rows_are_still_finite():
    rows, factor = choose_rows(torch.zeros(4), 2)
    assert ((rows >= 0) & (rows < 4)).all()
    assert factor.isfinite().all()


@pytest.mark.parametrize("weighting", [Weighting("band", 3.0, 0.5), Weighting("normalized", 3.0)])
def test_a_fraction_estimates_the_penalty_of_the_whole_batch(weighting):
    process, network = process_of("v_prediction"), Network()
    sample, t, noise = batch(process, size=256)
    penalty = EquivariancePenalty(process, weighting, attack="random")
    generator = torch.Generator().manual_seed(4)

    def mean(fraction: float, draws: int) -> float:
        objective = Objective(process, penalty, fraction)
        values = [
            objective(network, sample, t, noise, generator).penalty.mean() for _ in range(draws)
        ]
        return float(torch.stack(values).detach().mean())

    assert mean(1 / 8, 200) == pytest.approx(mean(1.0, 25), rel=0.03)


@pytest.mark.parametrize("batch", [1, 3, 4, 16, 64])
@pytest.mark.parametrize("fraction, every", [(1.0, 1), (0.125, 1), (0.125, 8), (0.3, 1), (0.07, 5)])
def test_over_the_turns_each_share_is_paid_in_full(batch, fraction, every):
    """After n turns the rows number n * fraction * batch, but for less than one portion; a turn's
    factor makes their mean count as so many; no step_index is more than one row from the others."""
    share = fraction * batch
    turns = [rows_at_step(batch, fraction, every, step) for step in range(400 * every)]
    counts = [count for count, _ in turns]
    assert sum(counts) == pytest.approx(len(turns) * share, abs=1)
    assert all(factor == pytest.approx(count / share) for count, factor in turns)
    assert set(counts[every - 1 :: every]) <= {int(every * share + 1e-9), ceil(every * share)}
    assert sum(counts[every - 1 :: every]) == sum(counts)  # nothing in the turns between
    assert max(counts) <= batch
    assert rows_at_step(batch, fraction, every) == (max(counts), 1.0)


def test_one_sample_in_eight_turns_is_the_penalty_of_all_eight():
    """Batches of one, an eighth of them regularized: the sum of the losses over eight turns."""
    process, network = process_of("epsilon"), Network()
    objective = Objective(
        process, EquivariancePenalty(process, attack="random"), penalty_fraction=0.125
    )
    sample, t, noise = batch(process, size=1)

    def loss(objective, **options):
        return objective(network, sample, t, noise, torch.Generator().manual_seed(3), **options)

    losses = [loss(objective, step_index=step) for step in range(8)]
    assert [len(one.penalty) for one in losses] == [0] * 7 + [1]
    objective.penalty_fraction = 1.0
    whole = loss(objective)
    added = sum((one.total - one.denoising.mean() for one in losses), torch.zeros(()))
    torch.testing.assert_close(added / 8, whole.total - whole.denoising.mean())


def test_every_so_many_steps_the_whole_batch_is_looked_at():
    """`every` = 1 / fraction: the sum over the steps is that of the paper's recipe, bit by bit."""
    process, network = process_of("epsilon"), Network()
    penalty = EquivariancePenalty(process, attack="random")
    paper, ours = Objective(process, penalty), Objective(process, penalty, 0.25, penalty_every=4)
    inputs = batch(process)
    whole = paper(network, *inputs, torch.Generator().manual_seed(5), step_index=0)
    turns = [
        ours(network, *inputs, torch.Generator().manual_seed(5), step_index=t) for t in range(4)
    ]
    assert [len(one.penalty) for one in turns] == [0, 0, 0, 8]
    assert torch.equal(turns[3].penalty, 4 * whole.penalty)


@pytest.mark.parametrize("fraction, every", [(0.0, 1), (1.5, 1), (0.5, 0), (0.125, 9)])
def test_a_share_that_a_batch_cannot_give_is_refused(fraction, every):
    process = process_of("epsilon")
    with pytest.raises(ValueError, match="must lie"):
        Objective(process, EquivariancePenalty(process), fraction, every)


def test_a_fraction_takes_the_same_rows_of_prediction_and_conditions():
    """`denoise` answers with its condition, so that each residual is -shift(w) only when the rows
    belong together: a mean of the weight times the gate, since mean(w^2) is divided by."""
    process, condition = process_of("epsilon"), torch.arange(8.0).view(-1, 1, 1, 1)
    objective = Objective(
        process, EquivariancePenalty(process, attack="random"), penalty_fraction=0.25
    )
    sample, t, noise = batch(process)
    loss = objective(lambda noisy, t, rows: condition[rows] + 0 * noisy, sample, t, noise)
    alpha, sigma = process(t, sample)
    gate = objective.penalty.weighting.gate(alpha, sigma)
    torch.testing.assert_close(loss.penalty, (3 * gate.mean()).expand(2))
    assert loss.denoising.shape == (8,)
    torch.testing.assert_close(loss.total, loss.denoising.mean() + loss.penalty.mean())


def test_branches_share_dropout_masks():
    """A radius of almost nothing: with shared masks so is the residual; with fresh masks it would
    be as large as the prediction."""
    process, network = process_of("epsilon"), Network(dropout=0.5).train()
    tiny = RadiusSchedule(scale=0, bias_min=1e-4, bias_max=1e-4)
    objective = Objective(process, EquivariancePenalty(process, Weighting("normalized", 1.0), tiny))
    objective(network, *(batch(process)[i] for i in (0, 1, 2)))
    loss = objective(network, *batch(process), torch.Generator().manual_seed(0))
    # residual ~ |(J - 1) w|, over |w|: of order 1. Without sharing: (1 / 1e-4)^2 = 1e8.
    assert loss.penalty.max() < 100


def test_masks_are_new_in_every_step_though_nothing_else_is_drawn():
    """Noise and perturbations may come from generators of their own."""
    drop, ones = torch.nn.Dropout(0.5), torch.ones(1000)
    torch.manual_seed(0)
    steps = [shared_dropout(drop, "cpu") for _ in range(3)]
    masks = [[denoise(ones), denoise(ones)] for denoise in steps]
    assert all(torch.equal(first, second) for first, second in masks)
    assert not torch.equal(masks[0][0], masks[1][0])
    assert not torch.equal(masks[1][0], masks[2][0])


def test_a_detached_prediction_is_refused():
    process, network = process_of("epsilon"), Network()
    sample, t, noise = batch(process)
    noisy, rows = process.add_noise(sample, noise, t), torch.arange(len(t))
    penalty = EquivariancePenalty(process)
    with pytest.raises(ValueError, match="do not detach it"):
        penalty(lambda x: network(x, t, rows), noisy, t, network(noisy, t, rows).detach())
    with pytest.raises(ValueError, match="`denoise` gives has no gradient"):
        penalty(lambda x: network(x, t, rows).detach(), noisy, t, network(noisy, t, rows))
    with torch.no_grad():  # to look at it is allowed
        assert penalty(lambda x: network(x, t, rows), noisy, t, network(noisy, t, rows)) > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_variance_exploding_process_has_the_radius_of_its_variance_preserving_twin(attack):
    """sigma of EDM goes to 80; the noise that is moved is the same noise."""
    times = torch.tensor([0.01, 0.5, 5.0, 80.0])
    exploding = NoiseProcess(lambda t: (torch.ones_like(t), t), "sample", times)
    preserving = NoiseProcess(
        lambda t: (1 / (1 + t.square()).sqrt(), t / (1 + t.square()).sqrt()), "sample", times
    )

    def perturbed(process):
        alpha, _ = process(times, torch.empty(4, 1))

        def denoise(noisy):
            return torch.tanh(noisy / alpha.repeat(len(noisy) // 4, 1)) / 2

        noisy = alpha * torch.linspace(-1, 1, 20).view(4, 5)
        penalty = EquivariancePenalty(process, attack=attack)
        generator = torch.Generator().manual_seed(0)
        return perturbed_input(penalty, denoise, noisy, times, generator=generator) / alpha

    # The same but for float32 rounding, of numbers up to a hundred.
    torch.testing.assert_close(perturbed(exploding), perturbed(preserving), rtol=1e-4, atol=1e-4)


def test_names_that_are_none_are_answered_with_those_that_are():
    with pytest.raises(ValueError, match="paper, normalized, band"):
        Weighting("bend")
    with pytest.raises(ValueError, match=r"displacement, gradient, got 'random'; .* robust-random"):
        make_objective("robust-adversarial", process_of("epsilon"), attack="random")


def test_ddp_may_attack_another_handle_of_the_same_network():
    process, network = process_of("epsilon"), Network()
    calls = []

    def attacked(noisy, t, rows):
        calls.append(len(noisy))
        return network(noisy, t, rows)

    def calls_of(fraction, **attack):
        calls.clear()
        objective = Objective(process, EquivariancePenalty(process, **attack), fraction)
        objective(network, *batch(process), attacked=attacked)
        return list(calls)

    # Where the batch is looked at in part, its prediction comes after the attack, which then needs
    # one of its own.
    assert calls_of(1.0, attack="gradient", attack_steps=3) == [8, 8, 8]
    assert calls_of(0.5, attack="gradient", attack_steps=3) == [4, 4, 4, 4]
    assert calls_of(1.0, attack="displacement") == [8]
    assert calls_of(0.5, attack="displacement") == [4 + 4]
    assert calls_of(0.5, attack="displacement", attack_steps=2) == [4, 4, 4]
    assert calls_of(0.5, attack="random") == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_some_rows_have_the_penalty_that_they_have_by_themselves(attack):
    """However the passes are put together."""
    process, network = process_of("v_prediction"), Network()
    penalty = EquivariancePenalty(process, Weighting("normalized", 1.0), attack=attack)
    sample, t, noise = batch(process)
    loss = Objective(process, penalty, 0.5)(
        network, sample, t, noise, torch.Generator().manual_seed(2)
    )
    generator = torch.Generator().manual_seed(2)
    rows, factor = choose_rows(torch.ones(8), 4, generator)
    noisy = process.add_noise(sample, noise, t)[rows]
    alone = penalty.per_sample(network.layers, noisy, t[rows], network.layers(noisy), generator)
    torch.testing.assert_close(loss.penalty, factor * alone)


@pytest.mark.parametrize(
    "attack, steps", [("displacement", 1), ("displacement", 3), ("gradient", 2)]
)
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_each_query_has_the_times_and_conditions_of_its_rows(attack, steps, fraction):
    """The network's and the attack's. Here t is a function of the row."""
    process = process_of("epsilon")
    sample, _, noise = batch(process)
    t = torch.arange(8) * 100
    network, queries = Network(), []

    def denoise(noisy, times, rows):
        assert len(noisy) == len(times) == len(rows)
        assert torch.equal(times, t[rows])
        queries.append(rows)
        return network(noisy, times, rows)

    penalty = EquivariancePenalty(process, attack=attack, attack_steps=steps)
    Objective(process, penalty, fraction)(denoise, sample, t, noise)
    assert len(queries) >= 2


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("s", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("parameterization", [*VP, "flow"])
def test_along_the_displacement_w_leaves_the_directions_of_the_data(parameterization, s, steps):
    """Gaussian data with much structure in 12 of 64 directions and little in the rest, its optimal
    denoiser: in every parameterization more of w lies in the rest than by chance, 52 of 64."""
    process = process_of(parameterization)
    basis, _ = torch.linalg.qr(torch.randn(64, 64))
    tau = torch.where(torch.arange(64) < 12, 2.0, 0.1)
    t = process.time_of(s).expand(400)
    alpha, sigma = process(t, torch.zeros(400, 64))
    s2 = (sigma / alpha).square()

    def ideal(noisy):
        sample = (noisy / alpha) @ basis * (tau.square() / (tau.square() + s2)) @ basis.T
        noise = (noisy - alpha * sample) / sigma
        return process.parameterization.target(sample, noise, alpha, sigma)

    penalty = EquivariancePenalty(process, Weighting("normalized", 1.0), attack_steps=steps)
    noisy = alpha * torch.randn(400, 64) * tau @ basis.T + sigma * torch.randn(400, 64)
    seen = perturbed_input(penalty, ideal, noisy, t, ideal(noisy))
    w = (seen - noisy) / sigma @ basis
    assert w[:, 12:].square().sum() / w.square().sum() > 52 / 64


def test_a_batch_and_its_perturbed_rows_are_one_pass():
    process, calls = process_of("epsilon"), []

    def network(noisy, t, rows):
        calls.append(rows.tolist())
        return noisy.tanh()

    sample, t, noise = batch(process)
    loss = Objective(process, EquivariancePenalty(process, attack="random"), 0.25)(
        network, sample, t, noise
    )
    assert [len(rows) for rows in calls] == [8 + 2]
    assert calls[0][:8] == list(range(8))
    assert (loss.denoising.shape, loss.penalty.shape) == ((8,), (2,))


def test_paper_weighting_is_one_over_the_standard_deviation_of_the_radius():
    radius = torch.tensor([0.1, 0.5]).view(-1, 1, 1, 1)
    ones = torch.ones_like(radius)
    factor = Weighting("paper", 0.3)(ones, radius, ones, ones)
    torch.testing.assert_close(factor, 0.3 * 3**0.5 / radius.flatten())


def test_band_is_open_below_its_noise_level_and_falls_as_the_square_above():
    gate = Weighting("band", 1.0, band=0.5).gate
    assert gate(torch.tensor(1.0), torch.tensor(0.0)) == 1
    assert gate(torch.tensor(0.0), torch.tensor(1.0)) == 0
    torch.testing.assert_close(gate(torch.tensor(0.5), torch.tensor(0.5)), torch.tensor(0.25))


def test_where_all_gates_are_shut_w_goes_alike_far_in_all_channels():
    weighting, column = Weighting("band", 1.0, (0.1, 0.4)), torch.ones(1, 1, 1, 1)
    assert weighting.channel_scale(0 * column, column).tolist() == torch.ones(1, 2, 1, 1).tolist()
    expected = torch.tensor([0.25, 1.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(weighting.channel_scale(0.5 * column, column), expected)


@pytest.mark.parametrize(
    ("name", "parameterization"),
    [
        (name, parameterization)
        for name in OBJECTIVES
        for parameterization in [*VP, "flow"]
        if (name, parameterization) != ("invariance", "sample")
    ],
)
def test_every_objective_is_finite_over_the_whole_process(name, parameterization):
    process, network = process_of(parameterization), Network()
    t = torch.stack([process.times[0], process.times[-1]])
    sample, noise = torch.randn(2, 2, 1, 6, 6)
    levels = Levels(torch.tensor([0.0, 0.4]))
    loss = make_objective(name, process)(network, sample, t, noise, levels=levels)
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_radius_of_nothing_is_no_penalty():
    process = process_of("flow")
    penalty = EquivariancePenalty(
        process, Weighting("paper", 0.3), RadiusSchedule(bias_min=0, bias_max=1e-3), attack="random"
    )
    penalty.radius = lambda sigma, generator: torch.zeros_like(sigma)  # as for sigma = bias = 0
    noisy, t = torch.randn(2, 1, 6, 6), torch.zeros(2)
    assert penalty(torch.tanh, noisy, t, torch.tanh(noisy)) == 0


def test_zero_terminal_snr_stays_finite():
    process = NoiseProcess.from_scheduler(
        DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    )
    sample, noise = torch.randn(2, 2, 1, 6, 6)
    loss = make_objective("robust-adversarial", process)(
        Network(), sample, torch.tensor([999, 999]), noise
    )
    assert loss.total.isfinite()


def test_robust_objective_has_its_regularizer_on():
    process = process_of("epsilon")
    loss = Objective(process, EquivariancePenalty(process))(Network(), *batch(process))
    assert (loss.penalty > 0).all()


def test_half_precision_network_gets_half_precision_input():
    process, network = process_of("epsilon"), Network().bfloat16()
    sample, t, noise = batch(process)
    noisy = process.add_noise(sample, noise, t).bfloat16()
    prediction = network.layers(noisy)
    assert EquivariancePenalty(process)(network.layers, noisy, t, prediction).isfinite()


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown objective 'robust'.*robust-adversarial"):
        make_objective("robust", process_of("epsilon"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1},
        {"weight": float("nan")},
        {"band": 0},
        {"band": float("nan")},
        {"band": []},
        {"band": torch.ones(2)},
    ],
)
def test_impossible_weightings_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Weighting(**wrong)


def test_a_band_of_one_channel_is_a_number():
    assert Weighting("band", 3.0, [0.3]) == Weighting("band", 3.0, 0.3)
    assert Weighting("band", 3.0, [0.3, 0.5]).band == (0.3, 0.5)


def test_parameterization_is_read_from_the_scheduler():
    assert process_of("flow").parameterization is Parameterization.FLOW
