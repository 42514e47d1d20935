from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from latent_robust.core import NoiseProcess, derive_generator, random_perturbation
from latent_robust.evaluation.attack_curves import attack_curve, save_attack_figure
from latent_robust.evaluation.attacks import TrajectoryAttack, nearest_steps
from latent_robust.evaluation.features import make_extractor
from latent_robust.evaluation.metrics import FeatureCache
from latent_robust.evaluation.sampling import (
    advance,
    clean_estimate,
    generate_samples,
    predict,
    sampling_scheduler,
)

STEPS, SHAPE = 6, (1, 4, 4)


class Linear(torch.nn.Module):
    """prediction = matrix @ x, over an image's 16 pixels."""

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix)
        self.config = SimpleNamespace(in_channels=1, sample_size=4)

    def forward(self, x, t):
        return SimpleNamespace(sample=(x.flatten(1) @ self.matrix.T).view_as(x))


class Curved(Linear):
    def forward(self, x, t):
        return SimpleNamespace(sample=super().forward(x, t).sample.sin())


def random_matrix() -> torch.Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(5)) / 4


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
        norm_num_groups=4,
    ).eval()


def sampler(kind: str):
    if kind == "flow":
        return sampling_scheduler(FlowMatchEulerDiscreteScheduler(), "ddim")
    return sampling_scheduler(DDPMScheduler(clip_sample=False), kind)


def draw(network, scheduler, perturb=None, count=3, **options):
    return generate_samples(
        network, scheduler, count, steps=STEPS, seed=1, perturb=perturb, **options
    )


def at_step(scheduler, step: int) -> list[float]:
    scheduler.set_timesteps(STEPS)
    return [scheduler.timesteps[step].item()]


@pytest.mark.parametrize("kind, iterations", [("ddim", 0), ("ddpm", 1), ("flow", 2)])
def test_radius_zero_is_bit_equal_to_plain_sampling(unet, kind, iterations):
    scheduler = sampler(kind)
    attack = TrajectoryAttack(
        unet, scheduler, 0.0, [0, 500], iterations=iterations, depth=2, draws=2
    )
    assert torch.equal(draw(unet, scheduler, attack), draw(unet, scheduler))


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "flow"])
def test_attack_at_no_time_equals_none(unet, kind):
    scheduler = sampler(kind)
    attack = TrajectoryAttack(unet, scheduler, 1.0, [])
    assert torch.equal(draw(unet, scheduler, attack), draw(unet, scheduler))


def test_attack_changes_the_attacked_step_and_no_other(unet):
    scheduler = sampler("ddim")
    attack, moved = TrajectoryAttack(unet, scheduler, 1.0, at_step(scheduler, 2)), []

    def watch(x, step, images):
        perturbed = attack(x, step, images)
        moved.append(not torch.equal(perturbed, x))
        return perturbed

    draw(unet, scheduler, watch)
    assert moved == [step == 2 for step in range(STEPS)]


@pytest.mark.parametrize("kind, iterations", [("ddim", 0), ("ddpm", 1), ("flow", 4)])
def test_noise_moves_no_further_than_the_radius(unet, kind, iterations):
    scheduler, radius = sampler(kind), 0.7
    scheduler.set_timesteps(STEPS)
    attack = TrajectoryAttack(unet, scheduler, radius, [300], iterations=iterations, depth=2)
    (step,) = nearest_steps(scheduler.timesteps, [300])
    x = torch.randn(3, *SHAPE)
    t = scheduler.timesteps[step]
    _, sigma = NoiseProcess.from_scheduler(scheduler)(t.expand(3), x)
    with torch.no_grad():
        w = (attack(x, step, range(3)) - x) / sigma
    # x + sigma w is rounded at the size of x, and so is the difference that gives w back.
    assert w.abs().max().item() == pytest.approx(radius, rel=1e-5)


def test_fgsm_on_a_linear_denoiser_in_closed_form():
    """With prediction = A x the estimate is B x, B = (I - sigma A) / alpha, and from the start w0
    the gradient of |B sigma w|^2 is along B'B w0."""
    network, scheduler, radius = Linear(random_matrix()), sampler("ddim"), 0.5
    scheduler.set_timesteps(STEPS)
    step, x = 3, torch.randn(3, *SHAPE)
    alpha, sigma = NoiseProcess.from_scheduler(scheduler)(scheduler.timesteps[step].expand(3), x)
    b = (torch.eye(16) - sigma[0].item() * network.matrix.detach()) / alpha[0].item()
    start = random_perturbation(
        x, torch.full_like(sigma, radius), derive_generator(7, "attack", step, 0)
    )
    direction = (start.flatten(1) @ (b.T @ b)).sign().view_as(x)
    w = (start + radius * direction).clamp(-radius, radius)
    attack = TrajectoryAttack(network, scheduler, radius, at_step(scheduler, step), seed=7)
    assert torch.equal(attack(x, step, range(3)), x + sigma * w)


def test_a_sampler_that_clips_hides_nothing_from_the_attack():
    """Where the clean estimate is beyond the limit, the attack still finds what moves it."""
    network, step = Linear(random_matrix()), 2
    x = 50 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    results = []
    for clips in (False, True):
        scheduler = type(sampler("ddim")).from_config(sampler("ddim").config, clip_sample=clips)
        scheduler.set_timesteps(STEPS)
        attack = TrajectoryAttack(network, scheduler, 0.3, at_step(scheduler, step), seed=7)
        results.append(attack(x, step, range(3)))
    assert torch.equal(*results)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_clean_estimate_after_that_many_networks(depth):
    """Of a linear denoiser, DDIM's map from x to the estimate is a matrix; the attack's gradient
    must be that of the whole product."""
    network, scheduler, radius, step = Linear(random_matrix()), sampler("ddim"), 0.5, 2
    scheduler.set_timesteps(STEPS)

    def estimate(x):
        for t in scheduler.timesteps[step : step + depth - 1]:
            x = advance(scheduler, predict(network, scheduler, x, t), t, x, [])
        t = scheduler.timesteps[step + depth - 1]
        return clean_estimate(scheduler, predict(network, scheduler, x, t), t, x)

    with torch.no_grad():
        whole = estimate(torch.eye(16).view(16, *SHAPE)).flatten(1).T
    x = torch.zeros(2, *SHAPE)
    _, sigma = NoiseProcess.from_scheduler(scheduler)(scheduler.timesteps[step].expand(2), x)
    start = random_perturbation(
        x, torch.full_like(sigma, radius), derive_generator(0, "attack", step, 0)
    )
    gradient = start.flatten(1) @ (whole.T @ whole)
    w = (start.flatten(1) + radius * gradient.sign()).clamp(-radius, radius).view_as(x)
    attack = TrajectoryAttack(network, scheduler, radius, at_step(scheduler, step), depth=depth)
    assert gradient.abs().min() > 1e-4  # or rounding could turn a sign
    assert torch.equal(attack(x, step, range(2)), sigma * w)


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_expectation_over_a_deterministic_sampler_is_one_draw(unet, kind):
    scheduler = sampler(kind)
    # A power of two, so that adding equal gradients rounds nothing.
    one, four = (
        draw(unet, scheduler, TrajectoryAttack(unet, scheduler, 1.0, [300], depth=2, draws=n))
        for n in (1, 4)
    )
    assert torch.equal(one, four)


def test_expectation_over_an_ancestral_sampler_is_not():
    network, scheduler = Curved(random_matrix()), sampler("ddpm")
    one, four = (
        draw(network, scheduler, TrajectoryAttack(network, scheduler, 1.0, [300], depth=2, draws=n))
        for n in (1, 4)
    )
    assert not torch.equal(one, four)


def test_attack_does_not_use_up_the_samplers_noise(unet):
    """Attacked or not, the ancestral noise is the same: with a network that is blind to x, what the
    attack adds is all that differs."""
    blind, scheduler = Linear(torch.zeros(16, 16)), sampler("ddpm")
    attack = TrajectoryAttack(blind, scheduler, 1.0, at_step(scheduler, 5), depth=2, draws=2)
    added = []

    def watch(x, step, images):
        perturbed = attack(x, step, images)
        added.append(perturbed - x)
        return perturbed

    attacked, plain = draw(blind, scheduler, watch), draw(blind, scheduler)
    alpha, _ = NoiseProcess.from_scheduler(scheduler)(scheduler.timesteps[5:], plain)
    # From the last step the sampler goes to the clean estimate, x / alpha; rounding of size 1e-7
    # times values of up to 1000.
    torch.testing.assert_close(attacked - plain, added[-1] / alpha, rtol=1e-3, atol=1e-3)


def test_attack_leaves_no_gradient_behind(unet):
    scheduler = sampler("ddim")
    generated = draw(unet, scheduler, TrajectoryAttack(unet, scheduler, 1.0, [500], iterations=2))
    assert not generated.requires_grad
    assert all(p.grad is None for p in unet.parameters())


def test_attack_displaces_more_than_chance(unet):
    network, scheduler = Linear(random_matrix()), sampler("ddim")
    scheduler.set_timesteps(STEPS)
    t, x = scheduler.timesteps[2], torch.randn(8, *SHAPE)

    def displacement(iterations):
        attack = TrajectoryAttack(network, scheduler, 1.0, [t.item()], iterations)
        with torch.no_grad():
            moved, still = (
                clean_estimate(scheduler, predict(network, scheduler, y, t), t, y)
                for y in (attack(x, 2, range(8)), x)
            )
        return (moved - still).square().mean()

    assert displacement(10) > displacement(1) > displacement(0)


def test_each_time_is_the_nearest_sampling_step():
    timesteps = torch.tensor([900, 600, 300, 0])
    assert nearest_steps(timesteps, [999, 440, 20, 460, 460]) == {0, 2, 3, 1}


@pytest.mark.parametrize("wrong", [{"radius": -1.0}, {"depth": 0}, {"draws": 0}])
def test_wrong_settings_are_refused(unet, wrong):
    settings = {"radius": 1.0, "at": [500], **wrong}
    with pytest.raises(ValueError, match="need radius"):
        TrajectoryAttack(unet, sampler("ddim"), **settings)


def test_a_curve_has_a_gap_where_images_are_not_finite(tmp_path):
    network, pixels = Linear(torch.full((16, 16), torch.nan)), make_extractor("pixels")
    clean = FeatureCache(torch.randn(8, *SHAPE))
    options = {"count": 4, "steps": STEPS, "seed": 0, "at": [500]}
    rows = attack_curve(network, sampler("ddim"), clean, [pixels], [1.0], **options)
    gap = {"displacement": None, "frechet": {"pixels": None}}
    assert rows == [{"radius": 0.0, **gap}, {"radius": 1.0, **gap}]
    save_attack_figure({"diverged": rows}, "nothing to see", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
