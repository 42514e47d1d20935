"""One run on a toy: train, generate points, measure them against the truth."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from latent_robust.core import derive_generator, derive_seed
from latent_robust.files import write_json
from latent_robust.training.continuation import identity
from latent_robust.training.directory import write_config
from latent_robust.training.loop import Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.run import complete, start_accelerator

from .measures import measure_points, psnr
from .network import ResidualMLP
from .task import (
    GeometryConfig,
    PointTask,
    generate_points,
    reconstruct,
)
from .toys import Toy, make_toy

# The time at which sigma / alpha is .52, about the std of the data. There, reconstructing a point
# needs both the noisy point and what the network has learned.
MIDDLE = 150


def train(config: GeometryConfig) -> dict | None:
    """=>  the content of metrics.json; None if a signal stopped training (after saving).

    All files go to `config.out`. With resume="auto" a stopped run is resumed.
    """
    toy = make_toy(config.data)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    task = PointTask(toy.training_set(config.seed, config.clean))
    accelerator = start_accelerator(config)
    trainer = Trainer(
        task,
        build_objective(config, task.process),
        config,
        accelerator,
        out=config.out,
        identity=identity(config, config.data, accelerator.num_processes),
    )
    begin = partial(write_config, config, config.out)
    if not complete(trainer, begin, partial(_finish, toy, config)):
        return None
    return json.loads((config.out / "metrics.json").read_text())


def _finish(toy: Toy, config: GeometryConfig, network: ResidualMLP, seconds: float | None) -> None:
    network.save_pretrained(config.out / "network")
    facts = {"objective": config.objective, "steps": config.steps}
    if seconds is not None:
        facts["seconds"] = round(seconds, 1)
    points = generate_points(network, config.samples, config.seed)
    if points.isfinite().all():
        clean = toy.fresh(config.samples, config.seed)
        generator = derive_generator(config.seed, "reconstruction")
        restored = reconstruct(network, clean, MIDDLE, generator)
        measured = {**measure_points(points, toy, config.seed), "psnr": psnr(restored, clean)}
        facts |= {"metrics": measured, "floors": floors(toy, config)}
    write_json(config.out / "metrics.json", facts)  # no `metrics`: training diverged


def floors(toy: Toy, config: GeometryConfig) -> dict[str, dict[str, float]]:
    """The measures of fresh clean points, and of the contaminated training set."""
    again = toy.truth.draw(config.samples, derive_generator(config.seed, "again"))
    training = toy.training_set(config.seed)
    repeats = -(-config.samples // len(training))
    order = torch.randperm(len(training), generator=derive_generator(config.seed, "subset"))
    some = training[order.repeat(repeats)[: config.samples]]
    return {
        "truth": measure_points(again, toy, config.seed),
        "training set": measure_points(some, toy, config.seed),
    }


def load_network(out: Path) -> ResidualMLP:
    """The network of a finished run, with averaged weights, in evaluation mode."""
    return ResidualMLP.from_pretrained(out / "network", use_safetensors=True).eval()
