"""The objective of a configuration."""

from __future__ import annotations

from latent_robust.core import NoiseProcess, Objective, Weighting, make_objective

from .config import TrainConfig
from .precision import HALF


def build_objective(config: TrainConfig, process: NoiseProcess) -> Objective:
    """Raises ValueError if the objective uses `weight` and `band` and one of them is still auto."""
    weighting = None
    if not isinstance(config.weight, str) and not isinstance(config.band, str):
        weighting = Weighting(config.weighting, config.weight, config.band)
    elif config.facts.regularized:
        raise ValueError(
            f"`weight` and `band` must be numbers here, got {config.weight} and {config.band}; "
            "resolve auto from the data first"
        )
    fraction, every = config.penalty_share
    # At least one sample every second optimizer step: a rarer penalty, with a larger factor, hurts
    # results (docs/results/cost.md).
    least = 0.5 / (config.batch_size * config.gradient_accumulation)
    return make_objective(
        config.objective,
        process,
        weighting=weighting,
        radius=config.radius_schedule(),
        attack=config.attack,
        attack_steps=config.attack_steps,
        penalty_fraction=max(fraction, min(least, 1 / every)),
        penalty_every=every,
        precision=HALF.get(config.mixed_precision),
        huber_c=config.huber_c,
        gamma=config.gamma,
    )
