"""Train a small Stable Diffusion pipeline for images of 32 x 32 pixels: the demo model on scenes of
simple shapes, or a model for your own captioned images.

    python scripts/build_demo_model.py --work runs/demo-model \\
        --out latent_robust/latent/base/assets/demo
    python scripts/build_demo_model.py --pairs emoji/base --work runs/emoji --out runs/emoji/model

Without --pairs, U-Net and text encoder train on clean scenes of the BASE_SHAPES only. This takes
about two hours on one slow core. The model in the package was trained by this code in several legs,
each with its own learning rate cycle: the autoencoder in three, while the weights of its loss were
tuned; U-Net and text encoder in two, of 9,000 and 13,000 steps.

With --pairs, the autoencoder of the package is fine-tuned on these images and on generic ones.
U-Net and text encoder are trained from scratch. The result is a diffusers folder for
`finetune-latent --model`. This takes about an hour on one slow core.

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

PREVIEWED = 64  # images of each preview; there are ten during training


def build_from_scenes(work: Path, out: Path, steps: int) -> None:
    def trained_autoencoder() -> AutoencoderKL:
        scenes = sample_scenes(6_000, SEED, BASE_SHAPES + CONCEPT_SHAPES)
        vae = make_autoencoder()
        train_autoencoder(vae, torch.stack([draw_scene(s) for s in scenes]), work, steps=9_000)
        return vae

    held_out = sample_scenes(PREVIEWED, SEED + 1)

    def preview(pipeline: StableDiffusionPipeline) -> str:
        """Save generated images.  =>  how many of them show what their captions say."""
        images = draw(pipeline, [scene.caption for scene in held_out])
        save_image(images, work / "samples.png", nrow=16)
        shares = match_scenes(images * 2 - 1, held_out)
        return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())

    vae = once(work / "vae", trained_autoencoder)
    scenes = sample_scenes(24_000, SEED)
    images = torch.stack([draw_scene(scene) for scene in scenes])
    captions = [scene.caption for scene in scenes]
    pipeline = train_denoiser(vae, images, captions, preview, widths=(32, 64), steps=steps)
    save_demo_model(pipeline, out)


def build_from_pairs(spec: str, work: Path, out: Path, steps: int) -> None:
    pairs = open_pairs(spec)
    print(f"{spec}: {pairs.summary()}")
    images = torch.stack([fit_bucket(pairs.image(i), (SIDE, SIDE)) for i in range(len(pairs))])

    def trained_autoencoder() -> AutoencoderKL:
        vae = load_demo_pipeline().vae
        train_autoencoder(vae, images, work, steps=3_000)
        return vae

    def preview(pipeline: StableDiffusionPipeline) -> str:
        """Save training images, each next to an image generated from its caption."""
        shown = evenly_spaced(len(pairs), PREVIEWED)
        generated = draw(pipeline, [pairs.captions[i] for i in shown])
        save_image(torch.cat([images[shown] / 255, generated], 3), work / "samples.png", nrow=8)
        return "samples.png"

    vae = once(work / "vae", trained_autoencoder)
    pipeline = train_denoiser(vae, images, pairs.captions, preview, widths=(48, 96), steps=steps)
    pipeline.save_pretrained(out)


def once(folder: Path, train: Callable[[], AutoencoderKL]) -> AutoencoderKL:
    """The autoencoder in `folder`; trained and saved there first if it is missing."""
    if not folder.is_dir():
        train().save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).requires_grad_(False)


def draw(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Generate an image for each caption.  =>  (N, 3, SIDE, SIDE) in [0, 1]."""
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
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for previews and the autoencoder"
    )
    parser.add_argument("--pairs", help="captioned images; same forms as finetune-latent --data")
    parser.add_argument(
        "--steps",
        type=int,
        help="training steps of the U-Net (default: 22,000 without --pairs, else 10,000)",
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.pairs is None:
        build_from_scenes(options.work, options.out, options.steps or 22_000)
    else:
        build_from_pairs(options.pairs, options.work, options.out, options.steps or 10_000)


if __name__ == "__main__":
    main()
