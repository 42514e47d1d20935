"""The objective of a configuration."""

from __future__ import annotations

from latent_robust.core import NoiseProcess, Objective, Weighting, make_objective

from .config import TrainConfig
from .precision import HALF


def build_objective(config: TrainConfig, process: NoiseProcess) -> Objective:
    """`weight` and `band` must be numbers by now; ValueError otherwise, if the objective uses them."""
    unresolved = "auto" in (config.weight, config.band)
    if unresolved and config.facts.regularized:
        raise ValueError(f"weight {config.weight} and band {config.band} must be numbers by now")
    # A penalty that comes more seldom than every second optimizer step, with more than twice the
    # weight, hurts results (docs/results/cost.md): at least one sample every second step.
    least = 0.5 / (config.batch_size * config.gradient_accumulation)
    return make_objective(
        config.objective,
        process,
        weighting=None if unresolved else Weighting(config.weighting, config.weight, config.band),
        radius=config.radius_schedule(),
        attack=config.attack,
        attack_steps=config.attack_steps,
        penalty_fraction=max(config.penalty_fraction, min(least, 1 / config.penalty_every)),
        penalty_every=config.penalty_every,
        precision=HALF.get(config.mixed_precision),
        huber_c=config.huber_c,
        gamma=config.gamma,
    )
