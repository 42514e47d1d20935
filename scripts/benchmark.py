#!/usr/bin/env python
"""Measure the cost of robust training steps, relative to plain ones, in one process.

    python scripts/benchmark.py            # writes results/benchmark.json, docs/results/cost.md
    python scripts/benchmark.py --cases "pixel U-Net"       # only one network; also --recipes
    python scripts/benchmark.py --rounds 2                  # a quick test; writes nothing

Each case is a network with the real trainer, once per recipe: plain training; the paper's (the
regularizer on every sample, with a gradient attack); ours (on a few samples, in every second step).

The recipes take turns, two steps at a time, in a rotating order. The ratio of a recipe is its time
divided by that of the plain steps of the same round. Time is CPU time, so other work on the machine
has little influence. Peak memory is that of two steps in a forked process, minus the memory before
any network was loaded. Needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from measure_sd15 import bare_stable_diffusion, forked, peak_bytes, return_freed_memory
from results_io import render, table_line

from latent_robust.data import ContaminatedImages, open_images, parse_contamination
from latent_robust.files import write_json
from latent_robust.latent.base.components import Components
from latent_robust.latent.base.demo_model import load_demo_pipeline
from latent_robust.latent.base.families import Family, StableDiffusion, StableDiffusion3
from latent_robust.latent.config import LatentConfig
from latent_robust.latent.session import make_trainable
from latent_robust.latent.task import LatentTask
from latent_robust.training.config import TrainConfig
from latent_robust.training.loop import Task, Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.run import start_accelerator
from pixel.config import PixelConfig
from pixel.task import PixelTask

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "benchmark.json"
ROUNDS, WARM_UP = 5, 1
STEPS = 2  # per turn of a recipe: one with the regularizer, one without
RECIPES = {
    "plain": {"objective": "ddpm"},
    "the paper's recipe": {
        "objective": "robust-adversarial",
        "attack": "gradient",
        "penalty_fraction": 1.0,
    },
    "robust-adversarial": {"objective": "robust-adversarial"},
    "robust-random": {"objective": "robust-random"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--recipes", nargs="+", choices=list(RECIPES)[1:], default=list(RECIPES)[1:]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return_freed_memory()
    for case in options.cases:
        recipes = ["plain", *options.recipes]
        # In a fork: memory freed by an earlier case would hide what this one needs.
        measured = forked(partial(measure, CASES[case], recipes, options.rounds))
        print(markdown({case: measured}), flush=True)
        if options.rounds >= ROUNDS:
            results = json.loads(RESULTS.read_text())
            results[case] = {**results.get(case, {}), **measured}
            results = {name: results[name] for name in CASES if name in results}
            write_json(RESULTS, results)
            render("benchmark", markdown(results))


def measure(make: Callable[..., Trainer], recipes: Sequence[str], rounds: int) -> dict:
    """=>  by recipe: median CPU seconds per step, ratio to plain in each round, peak bytes."""
    libraries = forked(peak_bytes)
    # Before this process builds trainers, since a fork starts with the memory of its parent.
    peaks = {name: peak(make, name) - libraries for name in recipes}
    with TemporaryDirectory() as out:
        trainers = {name: make(Path(out) / name, **RECIPES[name]) for name in recipes}
        batches = {name: trainer.batches() for name, trainer in trainers.items()}
        seconds = {name: [] for name in recipes}
        for number in range(-WARM_UP, rounds):
            order = [*recipes[number % len(recipes) :], *recipes[: number % len(recipes)]]
            for name in order:
                began = time.process_time()
                step(trainers[name], batches[name])
                if number >= 0:
                    seconds[name].append((time.process_time() - began) / STEPS)
    return {
        name: {
            "seconds_per_step": median(spent),
            "ratio": [a / b for a, b in zip(spent, seconds["plain"], strict=True)],
            "peak_bytes": peaks[name],
        }
        for name, spent in seconds.items()
    }


def step(trainer: Trainer, batches: Iterator) -> None:
    for _ in range(STEPS):
        trainer.train_step(batches)
        trainer.step += 1


def peak(make: Callable[..., Trainer], name: str) -> int:
    """=>  peak bytes of a process that takes two steps; the second has the optimizer state."""

    def steps() -> int:
        with TemporaryDirectory() as out:
            trainer = make(Path(out), **RECIPES[name])
            batches = trainer.batches()
            step(trainer, batches)
            return peak_bytes()

    return forked(steps)


# ------------------------------------------------------------------ the cases


def pixel(out: Path, **recipe) -> Trainer:
    """The digits study (docs/results/digits.md), with its weight and band."""
    config = PixelConfig(**{"weight": 8.0, "band": 0.2, **recipe}, device="cpu")
    images = ContaminatedImages(
        open_images("digits", size=config.size, channels=config.channels),
        parse_contamination(["gaussian:fraction=0.9,sigma=0.2"]),
        config.seed,
    )
    images.materialize()
    return trainer_of(PixelTask(config, images, out, main=False), config, out)


def demo(out: Path, **settings) -> Trainer:
    data = RandomLatents((16, 8, 8), {"text": (77, 64)})
    return latent(load_demo_pipeline(), StableDiffusion("sd1", 8), data, out, **settings)


def stable_diffusion(out: Path, size: int = 16, **settings) -> Trainer:
    """A small SD 1.x network: 30 M parameters, latents of size x size."""
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(64, 128, 256),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=256,
    )
    data = RandomLatents((4, size, size), {"text": (77, 256)})
    return latent(bare_stable_diffusion(unet), StableDiffusion("sd1", 8), data, out, **settings)


def transformer(out: Path, **settings) -> Trainer:
    """A small SD 3 network: 16 x 16 latents in patches of 2, six joint blocks."""
    network = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=256,
        caption_projection_dim=256,
        pooled_projection_dim=256,
        pos_embed_max_size=16,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3")),
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3")),
    )
    data = RandomLatents((16, 16, 16), {"text": (77, 256), "pooled": (256,)})
    return latent(pipeline, StableDiffusion3("sd3", 16), data, out, **settings)


class RandomLatents:
    """Encoded pairs with random values, which cost as much as real ones."""

    def __init__(self, shape: tuple[int, ...], text: dict[str, tuple[int, ...]], count: int = 256):
        """shape: of a latent; text: shape of each condition, without the batch axis."""
        generator = torch.Generator().manual_seed(0)
        self.mean = torch.randn(count, *shape, generator=generator)
        self.text = {
            key: torch.randn(count, *shape, generator=generator) for key, shape in text.items()
        }
        self.empty_text = {key: value[:1] for key, value in self.text.items()}

    def __len__(self) -> int:
        return len(self.mean)

    def buckets(self) -> list[range]:
        return [range(len(self))]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        mean = self.mean[indices]
        return {
            "index": torch.tensor(indices),
            "mean": mean,
            "std": torch.full_like(mean, 0.05),
            "text": {key: value[indices] for key, value in self.text.items()},
            "size": torch.full((len(mean), 2), 8 * mean.shape[-1]),
        }


def latent(
    pipeline: DiffusionPipeline,
    family: Family,
    data: RandomLatents,
    out: Path,
    **settings,
) -> Trainer:
    trained = settings if settings.get("full") else {"lora": True, **settings}
    config = LatentConfig(batch_size=16, weight=3.0, band=0.5, device="cpu", **trained)
    components = Components(family, pipeline, identity="random weights")
    make_trainable(config, components)
    return trainer_of(LatentTask(config, components, data, range(len(data))), config, out)


def trainer_of(task: Task, config: TrainConfig, out: Path) -> Trainer:
    objective = build_objective(config, task.process)
    trainer = Trainer(task, objective, config, start_accelerator(config), out=out)
    trainer.network.train()
    return trainer


CASES = {
    "pixel U-Net": pixel,
    "SD U-Net of the demo, LoRA": demo,
    "SD U-Net, LoRA": stable_diffusion,
    "SD U-Net, LoRA, latents of 8 x 8": partial(stable_diffusion, size=8),
    "SD U-Net, LoRA, latents of 32 x 32": partial(stable_diffusion, size=32),
    "SD U-Net, LoRA, gradient checkpointing": partial(
        stable_diffusion, gradient_checkpointing=True
    ),
    "SD U-Net, full": partial(stable_diffusion, full=True),
    "SD 3 transformer, LoRA": transformer,
    "SD 3 transformer, full": partial(transformer, full=True),
}


def markdown(results: dict[str, dict]) -> str:
    """For each recipe: step time over the plain step's, as median (quartiles) of the rounds; then
    peak memory over the plain step's."""
    recipes = list(next(iter(results.values())))
    lines = [
        table_line(["network", "plain step, s", *recipes[1:]]),
        "|---" * (len(recipes) + 1) + "|",
    ]
    for case, by_recipe in results.items():
        plain = by_recipe["plain"]
        cells = []
        for name in recipes[1:]:
            ratios = by_recipe[name]["ratio"]
            low, _, high = quantiles(ratios, n=4)
            memory = by_recipe[name]["peak_bytes"] / plain["peak_bytes"]
            cells.append(f"{median(ratios):.2f} ({low:.2f} to {high:.2f}), {memory:.2f}")
        lines.append(table_line([case, f"{plain['seconds_per_step']:.3f}", *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
