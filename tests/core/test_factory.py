"""Every setting reaches the object that uses it."""

import pytest
import torch
from diffusers import DDPMScheduler

from latent_robust.core import (
    OBJECTIVES,
    AdversarialDenoising,
    Levels,
    NoiseProcess,
    RadiusSchedule,
    Weighting,
    make_objective,
)

PROCESS = NoiseProcess.from_scheduler(DDPMScheduler())
WEIGHTING = Weighting("normalized", 7.0)
RADIUS = RadiusSchedule(rho=1.0, scale=0.3)
SETTINGS = {
    "weighting": WEIGHTING,
    "radius": RADIUS,
    "attack": "gradient",
    "attack_steps": 3,
    "penalty_fraction": 0.25,
    "penalty_every": 2,
    "precision": torch.bfloat16,
    "huber_c": 0.7,
    "gamma": 0.4,
}


@pytest.mark.parametrize(
    ("name", "attack", "equivariant"),
    [
        ("robust-adversarial", "gradient", True),
        ("robust-random", "random", True),
        ("invariance", "gradient", False),
    ],
)
def test_a_regularized_objective_has_the_settings_it_is_given(name, attack, equivariant):
    objective = make_objective(name, PROCESS, **SETTINGS)
    penalty = objective.penalty
    assert (objective.penalty_fraction, objective.penalty_every) == (0.25, 2)
    assert (penalty.attack, penalty.equivariant) == (attack, equivariant)
    assert (penalty.attack_steps, penalty.precision) == (3, torch.bfloat16)
    assert (penalty.weighting, penalty.radius) == (WEIGHTING, RADIUS)


def test_a_peer_has_the_settings_it_is_given():
    assert make_objective("pseudo-huber", PROCESS, **SETTINGS).c == 0.7
    assert make_objective("input-perturbation", PROCESS, **SETTINGS).gamma == 0.4
    assert AdversarialDenoising(PROCESS).attack_steps == 1
    at_diff = make_objective("at-diff", PROCESS, **SETTINGS)
    assert (at_diff.radius, at_diff.attack_steps) == (RADIUS, 3)
    for name, facts in OBJECTIVES.items():
        if not facts.regularized:
            assert make_objective(name, PROCESS, **SETTINGS).penalty is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_function_of_its_generator(name):
    """Whatever the global random state is; and another seed gives another loss, if any is used."""
    generator = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(2, 8, 1, 4, 4, generator=generator)
    t, levels = PROCESS.draw_times(8, generator), torch.full((8,), 0.1)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)

    def loss(seed):
        objective = make_objective(name, PROCESS)
        return objective(
            lambda noisy, t, rows: network(noisy),
            sample,
            t,
            noise,
            torch.Generator().manual_seed(seed),
            levels=Levels(levels),
        ).total

    first, again, other = loss(1), loss(1), loss(2)
    assert torch.equal(first, again)
    draws = OBJECTIVES[name].regularized or name in ("input-perturbation", "at-diff")
    assert torch.equal(first, other) is not draws
