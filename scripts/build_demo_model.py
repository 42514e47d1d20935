"""Train a small Stable Diffusion pipeline for images of 32 x 32: the one that ships with the
project, on procedurally drawn scenes, or one for captioned images of your own.

    python scripts/build_demo_model.py --work runs/demo-model \\
        --out latent_robust/latent/assets/demo
    python scripts/build_demo_model.py --pairs emoji/base --work runs/emoji --out runs/emoji/model

Without --pairs, U-Net and text encoder see clean scenes of the BASE_SHAPES only, and it takes about
two hours of one slow core. The shipped model was trained by this code in several legs, each with a
learning rate that rises and falls: the autoencoder in three, while the weights of its loss were
being found, U-Net and text encoder in two of 9,000 and 13,000 steps.

With --pairs, the shipped autoencoder learns their images besides generic ones, U-Net and text
encoder start from nothing, and the result is a diffusers folder for `finetune-latent --model`. At
the speed of its first steps it takes about an hour of one slow core.

A finished autoencoder in --work is used again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from demo_model.autoencoder import make_autoencoder, train_autoencoder
from demo_model.denoiser import train_denoiser
from demo_model.fitting import SEED
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from torchvision.utils import save_image

from latent_robust.data import open_pairs
from latent_robust.data.buckets import fit_bucket
from latent_robust.data.sources.scenes import (
    BASE_SHAPES,
    CONCEPT_SHAPES,
    SIDE,
    draw_scene,
    sample_scenes,
)
from latent_robust.latent.base.demo_model import load_demo_pipeline, save_demo_model
from latent_robust.latent.scene_match import match_scenes
from latent_robust.subset import evenly_spaced

LOOKED_AT = 64  # samples, ten times during training


def build_from_scenes(work: Path, out: Path, steps: int) -> None:
    def trained_autoencoder() -> AutoencoderKL:
        scenes = sample_scenes(6_000, SEED, BASE_SHAPES + CONCEPT_SHAPES)
        vae = make_autoencoder()
        train_autoencoder(vae, torch.stack([draw_scene(s) for s in scenes]), work, steps=9_000)
        return vae

    new = sample_scenes(LOOKED_AT, SEED + 1)  # not trained on

    def look(pipeline: StableDiffusionPipeline) -> str:
        images = draw(pipeline, [scene.caption for scene in new])
        save_image(images, work / "samples.png", nrow=16)
        shares = match_scenes(images * 2 - 1, new)
        return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())

    vae = once(work / "vae", trained_autoencoder)
    scenes = sample_scenes(24_000, SEED)
    images = torch.stack([draw_scene(scene) for scene in scenes])
    captions = [scene.caption for scene in scenes]
    save_demo_model(train_denoiser(vae, images, captions, look, widths=(32, 64), steps=steps), out)


def build_from_pairs(spec: str, work: Path, out: Path, steps: int) -> None:
    pairs = open_pairs(spec)
    print(f"{spec}: {pairs.summary()}")
    images = torch.stack([fit_bucket(pairs.image(i), (SIDE, SIDE)) for i in range(len(pairs))])

    def trained_autoencoder() -> AutoencoderKL:
        vae = load_demo_pipeline().vae
        train_autoencoder(vae, images, work, steps=3_000)
        return vae

    def look(pipeline: StableDiffusionPipeline) -> str:
        """Each image, and beside it what its caption makes the model draw."""
        shown = evenly_spaced(len(pairs), LOOKED_AT)
        drawn = draw(pipeline, [pairs.captions[i] for i in shown])
        save_image(torch.cat([images[shown] / 255, drawn], 3), work / "samples.png", nrow=8)
        return "samples.png"

    vae = once(work / "vae", trained_autoencoder)
    pipeline = train_denoiser(vae, images, pairs.captions, look, widths=(48, 96), steps=steps)
    pipeline.save_pretrained(out)


def once(folder: Path, train: Callable[[], AutoencoderKL]) -> AutoencoderKL:
    if not folder.is_dir():
        train().save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).requires_grad_(False)


def draw(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """=>  (N, 3, SIDE, SIDE) in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        captions,
        guidance_scale=3.0,
        num_inference_steps=25,
        output_type="pt",
        generator=torch.Generator().manual_seed(SEED),
    ).images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the model is written")
    parser.add_argument("--work", type=Path, required=True, help="for what is made on the way")
    parser.add_argument("--pairs", help="captioned images, as --data of finetune-latent")
    parser.add_argument("--steps", type=int, help="of the U-Net (scenes 22,000, pairs 10,000)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.pairs is None:
        build_from_scenes(options.work, options.out, options.steps or 22_000)
    else:
        build_from_pairs(options.pairs, options.work, options.out, options.steps or 10_000)


if __name__ == "__main__":
    main()
