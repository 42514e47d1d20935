#!/usr/bin/env python
"""Measure a robust and a plain LoRA training step at the size of Stable Diffusion 1.5.

    python scripts/measure_sd15.py              # writes results/sd15.json, docs/results/sd15.md
    python scripts/measure_sd15.py --encoding   # time a cache saves: results/sd15-encoding.json

The network has random weights, since the cost of a step does not depend on them. The latents are
those of images of 512 pixels. Each step runs in a fork of this process, which already has the
network, so its peak memory is that of the step. Cases take turns, and time is CPU time, so other
work on the machine has little influence. Needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from results_io import render, table_line
from torch.nn.utils import clip_grad_norm_
from transformers import CLIPTextConfig, CLIPTextModel

from latent_robust.core import derive_generator
from latent_robust.files import write_json
from latent_robust.latent.base.components import Components
from latent_robust.latent.base.families import StableDiffusion
from latent_robust.latent.config import LatentConfig
from latent_robust.latent.lora.adapters import add_lora, lora_parameters
from latent_robust.latent.memory import GIB, estimate_memory
from latent_robust.training.objectives import build_objective
from latent_robust.training.optimizer import make_optimizer

RESULTS = Path(__file__).parent.parent / "results" / "sd15.json"
ENCODING = RESULTS.with_name("sd15-encoding.json")
TURNS = {1: 2, 4: 1}  # repetitions, by batch size
SETTINGS = [
    {"batch_size": 1, "gradient_checkpointing": False},
    {"batch_size": 1, "gradient_checkpointing": True},
    {"batch_size": 4, "gradient_checkpointing": True},
]
OBJECTIVES = [
    {"objective": "ddpm"},
    # At least one image of each batch, in every step.
    {"objective": "robust-adversarial", "penalty_fraction": 0.25, "penalty_every": 1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoding", action="store_true", help="measure VAE and text encoder")
    torch.set_num_threads(1)
    if parser.parse_args().encoding:
        seconds = encoding()
        write_json(ENCODING, seconds)
        print(seconds)
        return
    rows = [
        setting | objective | {"seconds": [], "peak": 0}
        for setting in SETTINGS
        for objective in OBJECTIVES
    ]
    return_freed_memory()
    libraries = forked(peak_bytes)
    components = random_sd15(torch.float32)
    for row in rows:
        row["estimate"] = forked(lambda row=row: estimate(components, row))
    for turn in range(max(TURNS.values())):
        for row in (row for row in rows if turn < TURNS[row["batch_size"]]):
            seconds, peak = forked(lambda row=row, turn=turn: step(components, row, turn))
            row["seconds"].append(seconds)
            row["peak"] = max(row["peak"], peak - libraries)
            write_json(RESULTS, rows)
    # bf16 is only estimated: a CPU without bfloat16 instructions would take hours for one step.
    components = random_sd15(torch.bfloat16)
    for row in rows:
        row["estimate_bf16"] = forked(lambda row=row: estimate(components, row))
    write_json(RESULTS, rows)
    render("sd15", markdown(rows))


@torch.no_grad()
def encoding() -> dict[str, list[float]]:
    """=>  CPU seconds to encode an image of 512 x 512 pixels and a caption, twice each.

    The VAE and the text encoder are those of SD 1.5, with random weights."""
    # The defaults of CLIPTextConfig are narrower than the text encoder of SD 1.5.
    wide = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text_encoder = CLIPTextModel(CLIPTextConfig(**wide, num_hidden_layers=12)).eval()
    blocks = 4
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    image, caption = torch.randn(1, 3, 512, 512), torch.randint(40_000, (1, 77))
    seconds: dict[str, list[float]] = {"image": [], "caption": []}
    for _ in range(2):
        for name, encode in (
            ("image", lambda: vae.encode(image)),
            ("caption", lambda: text_encoder(caption)),
        ):
            began = time.process_time()
            encode()
            seconds[name].append(time.process_time() - began)
    return seconds


def random_sd15(dtype: torch.dtype) -> Components:
    # The other defaults of UNet2DConditionModel are those of SD 1.5.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(dtype)
    pipeline = bare_stable_diffusion(unet)
    components = Components(StableDiffusion("sd1", 8), pipeline, identity="random weights")
    add_lora(components, rank=16, alpha=16)
    unet.train()
    return components


def bare_stable_diffusion(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """A pipeline with the network and the noise process of SD 1.x, without VAE and text encoder."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(**betas, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def forked(work: Callable[[], Any]) -> Any:
    """=>  the result of `work`, run in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()  # if the process dies, recv() raises EOFError instead of waiting forever
    result = receiver.recv()
    process.join()
    return result


def configure(components: Components, row: dict) -> LatentConfig:
    settings = {key: row[key] for key in row.keys() & LatentConfig.model_fields.keys()}
    precision = "no" if components.network.dtype == torch.float32 else "bf16"
    fixed = {"weight": 3.0, "band": 0.5, "ema_decay": 0, "mixed_precision": precision}
    config = LatentConfig(lora=True, **fixed, **settings)
    if config.gradient_checkpointing:
        components.network.enable_gradient_checkpointing()
    return config


def estimate(components: Components, row: dict) -> int:
    """=>  bytes that `estimate_memory` predicts for the row."""
    item = {
        "mean": torch.zeros(1, 4, 64, 64),
        "size": torch.full((1, 2), 512),
        "text": {"text": torch.zeros(1, 77, 768)},
    }
    return estimate_memory(components, configure(components, row), item).total


def step(components: Components, row: dict, turn: int) -> tuple[float, int]:
    """One training step.  =>  CPU seconds, and the peak memory of the process in bytes."""
    config = configure(components, row)
    generator = derive_generator("sd15", turn)
    sample, noise = torch.randn(2, config.batch_size, 4, 64, 64, generator=generator)
    text = torch.randn(config.batch_size, 77, 768, generator=generator)
    t = components.process.draw_times(config.batch_size, generator)
    parameters = lora_parameters(components)
    optimizer = make_optimizer(config, parameters, sample.device)
    objective = build_objective(config, components.process)

    began = time.process_time()
    denoise = components.family.denoiser(components.network, {"text": text})
    objective(denoise, sample, t, noise, generator).total.backward()
    clip_grad_norm_(parameters, config.max_gradient_norm)
    optimizer.step()
    return time.process_time() - began, peak_bytes()


def return_freed_memory() -> None:
    """Make glibc return freed tensors to the system.

    By default it keeps freed blocks of up to 32 MiB on a fragmented heap, and the peak would
    measure the fragmentation instead of the step."""
    mmap_threshold = -3
    ctypes.CDLL(None).mallopt(mmap_threshold, 2**20)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def markdown(rows: list[dict]) -> str:
    lines = [
        "| batch | checkpointing | step | peak, GiB | estimate | bf16 estimate | seconds | x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["objective"] == "ddpm":
            plain = median(row["seconds"])
        checkpointing = "yes" if row["gradient_checkpointing"] else "no"
        sizes = [f"{row[key] / GIB:.2f}" for key in ("peak", "estimate", "estimate_bf16")]
        seconds = median(row["seconds"])
        cells = [str(row["batch_size"]), checkpointing, row["objective"], *sizes]
        lines.append(table_line([*cells, f"{seconds:.0f}", f"{seconds / plain:.2f}"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
