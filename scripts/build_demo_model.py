"""Train the Stable Diffusion pipeline that ships with the project, on procedurally drawn scenes.

    python scripts/build_demo_model.py --work runs/demo-model \\
        --out latent_robust/latent/assets/demo

The autoencoder is generic, as those of real models are: it has seen noise, compression, missing
blocks and shapes of all kinds, and reproduces them. The U-Net and the text encoder have seen clean
scenes of the BASE_SHAPES only. A finished autoencoder in `--work` is used again.

It takes about two hours of one slow core. The shipped model was trained by this code in several
legs, each with a learning rate that rises and falls: the autoencoder in three, while the weights of
its loss were being found, U-Net and text encoder in two of 9,000 and 13,000 steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torch.nn import Parameter
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latent_robust.core.seeds import derive_generator
from latent_robust.data.corruptions import Blocks, Blur, Gaussian, Jpeg, SaltAndPepper
from latent_robust.data.scenes import (
    BASE_SHAPES,
    CONCEPT_SHAPES,
    SIDE,
    Scene,
    draw_scene,
    sample_scenes,
)
from latent_robust.latent.demo_model import (
    clip_tokenizer,
    expand_vocabulary,
    known_tokens,
    make_pipeline,
    save_demo_model,
)
from latent_robust.latent.scene_match import match_scenes

SEED = 0
EMA_DECAY = 0.999

# Autoencoder. The latents must have room for dirt: (16, 8, 8) is a third of a picture's values.
PICTURES = 12_000
VAE_STEPS = 9_000
VAE_BATCH = 8
VAE_RATE = 2e-3
KL_WEIGHT = 1e-5
# Least squares alone would smooth away half of a picture's noise; see `reconstruction_loss`.
TEXTURE_WEIGHT = 1.7

# U-Net and text encoder.
SCENES = 24_000
STEPS = 22_000
BATCH = 16
DRAWS = 2  # times and noises per caption, since encoding a caption costs as much as denoising
RATE = 1e-3
CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0


def make_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=SIDE,
    )


def generic_picture(generator: Generator) -> Tensor:
    """One to three random polygons, discs and outlines in any colours: (3, SIDE, SIDE), uint8."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def color() -> tuple[int, int, int]:
        return tuple(torch.randint(256, (3,), generator=generator).tolist())

    scale = 4
    canvas = Image.new("RGB", (SIDE * scale,) * 2, color())
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(uniform(1, 4))):
        x, y, radius = (scale * SIDE * uniform(*r) for r in ((0.2, 0.8), (0.2, 0.8), (0.1, 0.4)))
        if uniform(0, 1) < 0.4:
            width = int(uniform(0.2, 1.2) * radius)  # beyond the radius: a disc
            draw.circle((x, y), radius, outline=color(), width=min(width, int(radius)))
            continue
        corners = int(uniform(3, 12))
        start = uniform(0, 2 * pi)
        reach = [radius * uniform(0.3, 1) for _ in range(corners)]
        angles = [start + 2 * pi * i / corners for i in range(corners)]
        points = [(x + r * cos(a), y + r * sin(a)) for r, a in zip(reach, angles, strict=True)]
        draw.polygon(points, fill=color())
    return pil_to_tensor(canvas.reduce(scale))


def corrupted(picture: Tensor, generator: Generator) -> Tensor:
    """picture: (3, SIDE, SIDE) in [0, 1]. A third of them stay as they are."""
    kind, strength = torch.rand(2, generator=generator).tolist()
    ways = []
    if kind < 0.4:
        ways = [Gaussian(sigma=0.25 * strength, fraction=1)]
    elif kind < 0.46:
        ways = [Blur(sigma=0.3 + 1.5 * strength, fraction=1)]
    elif kind < 0.52:
        ways = [Jpeg(quality=int(10 + 80 * strength), fraction=1)]
    elif kind < 0.58:
        ways = [Blocks(size=0.1 + 0.3 * strength, count=2, fraction=1)]
    elif kind < 0.66:
        ways = [Blur(sigma=0.7, fraction=1), SaltAndPepper(amount=0.1 * strength, fraction=1)]
    for way in ways:
        picture, _ = way.apply(picture, generator)
    return picture


def dirty_batch(clean: Tensor, step: int) -> Tensor:
    """clean: (N, 3, SIDE, SIDE), uint8  =>  (VAE_BATCH, 3, SIDE, SIDE), about [-1, 1]."""
    generator = derive_generator(SEED, "autoencoder", step)
    rows = torch.randint(len(clean), (VAE_BATCH,), generator=generator)
    pictures = [corrupted(picture / 255, generator) for picture in clean[rows]]
    return torch.stack(pictures).to(memory_format=torch.channels_last) * 2 - 1


def reconstruction_loss(reconstruction: Tensor, pictures: Tensor) -> Tensor:
    """Squared error, and squared error of each picture's amount of fine texture.

    The second term is what a perceptual loss is for real autoencoders: noise that does not fit
    into the latents comes out as other noise, not as a smooth surface.
    """
    error = F.mse_loss(reconstruction, pictures)
    texture = [
        (x - gaussian_blur(x, [5, 5], [1.0, 1.0])).flatten(1) for x in (reconstruction, pictures)
    ]
    amounts = [(fine.square().mean(1) + 1e-6).sqrt() for fine in texture]
    return error + TEXTURE_WEIGHT * F.mse_loss(*amounts)


def train_autoencoder(work: Path) -> AutoencoderKL:
    torch.manual_seed(SEED)
    vae = make_autoencoder().to(memory_format=torch.channels_last)
    shapes = BASE_SHAPES + CONCEPT_SHAPES
    scenes = [draw_scene(scene) for scene in sample_scenes(PICTURES // 2, SEED, shapes)]
    generator = derive_generator(SEED, "generic pictures")
    generic = [generic_picture(generator) for _ in range(PICTURES // 2)]
    pictures = torch.stack(scenes + generic)

    def loss_at(step: int) -> Tensor:
        batch = dirty_batch(pictures, step)
        posterior = vae.encode(batch).latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        reconstruction = vae.decode(posterior.sample()).sample
        return reconstruction_loss(reconstruction, batch) + KL_WEIGHT * kl

    def look() -> str:
        batch = dirty_batch(pictures, 0)
        grid = torch.cat([batch, vae.decode(vae.encode(batch).latent_dist.mean).sample]) / 2 + 0.5
        save_image(grid, work / "autoencoder.png", nrow=VAE_BATCH)
        return "autoencoder.png"

    fit([*vae.parameters()], loss_at, look, steps=VAE_STEPS, rate=VAE_RATE)
    return vae.eval().requires_grad_(False)


def fit(
    parameters: list[Parameter],
    loss_at: Callable[[int], Tensor],
    look: Callable[[], str],
    *,
    steps: int,
    rate: float,
) -> None:
    """Leaves the averaged parameters in place. look: called with them, ten times; its answer is
    printed."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.05
    )
    ema = EMAModel(parameters, decay=EMA_DECAY)
    start = time.monotonic()
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(parameters)
        if (step + 1) % (steps // 10) == 0:
            speed = (step + 1) / (time.monotonic() - start)
            ema.store(parameters)
            ema.copy_to(parameters)
            with torch.no_grad():
                seen = look()
            ema.restore(parameters)
            print(f"{step + 1}/{steps}  {speed:.2f} steps/s  loss {loss.item():.4f}  {seen}")
    ema.copy_to(parameters)


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=64,
            bos_token_id=vocabulary - 2,  # the special tokens come last, as in CLIP
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def make_unet(vae: AutoencoderKL) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=64,
        attention_head_dim=2,  # the number of heads, as in every SD 1.x configuration
        norm_num_groups=8,
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """=>  mean and std of the latents, each (N, c, h, w)."""
    posteriors = []
    for start in range(0, len(scenes), 256):
        pictures = torch.stack([draw_scene(scene) for scene in scenes[start : start + 256]])
        posteriors.append(vae.encode(pictures / 127.5 - 1).latent_dist)
    return tuple(torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))


@torch.no_grad()
def standardize(vae: AutoencoderKL, scenes: list[Scene]) -> None:
    """Give every channel of the scenes' latents mean 0 and variance 1; the pictures stay as they
    are. A scaling factor alone could not: the channels differ five-fold."""
    means, _ = encode(vae, scenes)
    std, mean = torch.std_mean(means, (0, 2, 3))
    channels = len(mean)
    moments, back = vae.quant_conv, vae.post_quant_conv  # both 1 x 1
    back.bias += back.weight[..., 0, 0] @ mean
    back.weight *= std[:, None, None]
    moments.weight[:channels] /= std[:, None, None, None]
    moments.bias[:channels] = (moments.bias[:channels] - mean) / std
    moments.bias[channels:] -= 2 * std.log()  # the logarithm of the variance
    vae.register_to_config(scaling_factor=1.0)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_denoiser(vae: AutoencoderKL, work: Path) -> StableDiffusionPipeline:
    """U-Net and text encoder together. The text encoder has the captions' tokens only; the others
    are added in the end."""
    torch.manual_seed(SEED)
    scenes = sample_scenes(SCENES, SEED)
    standardize(vae, scenes[:2_000])
    mean, std = encode(vae, scenes)
    tokenizer = clip_tokenizer()
    tokens = known_tokens(tokenizer)
    number = torch.zeros(len(tokenizer), dtype=torch.long)
    number[tokenizer.convert_tokens_to_ids(tokens)] = torch.arange(len(tokens))
    captions = number[tokenize(tokenizer, [scene.caption for scene in scenes])]  # (N, 77)
    empty = number[tokenize(tokenizer, [""])]
    text_encoder, unet = make_text_encoder(len(tokens)), make_unet(vae)
    unet.to(memory_format=torch.channels_last)

    def pipeline() -> StableDiffusionPipeline:
        return make_pipeline(
            vae, expand_vocabulary(text_encoder, tokens, tokenizer), tokenizer, unet
        )

    scheduler = pipeline().scheduler

    def loss_at(step: int) -> Tensor:
        generator = derive_generator(SEED, "denoiser", step)
        rows = torch.randint(SCENES, (BATCH // DRAWS,), generator=generator)
        dropped = torch.rand(len(rows), 1, generator=generator) < CAPTION_DROPOUT
        text = text_encoder(torch.where(dropped, empty, captions[rows])).last_hidden_state
        text, rows = (x.repeat_interleave(DRAWS, 0) for x in (text, rows))
        noise, spread = torch.randn(2, *mean[rows].shape, generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        noisy = scheduler.add_noise(mean[rows] + std[rows] * spread, noise, t)
        error = (unet(noisy, t, text).sample - noise).square().mean((1, 2, 3))
        snr = compute_snr(scheduler, t)
        return (snr.clamp(max=SNR_GAMMA) / snr * error).mean()  # Hang et al. 2023

    parameters = [*text_encoder.parameters(), *unet.parameters()]

    def look() -> str:
        return sample(pipeline(), work / "samples.png")

    fit(parameters, loss_at, look, steps=STEPS, rate=RATE)
    return pipeline()


def sample(pipeline: StableDiffusionPipeline, path: Path) -> str:
    """Samples of captions that were not trained on, and the shares that match them."""
    scenes = sample_scenes(64, SEED + 1)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        [scene.caption for scene in scenes],
        guidance_scale=3.0,
        num_inference_steps=25,
        output_type="pt",
        generator=torch.Generator().manual_seed(SEED),
    ).images
    save_image(pictures, path, nrow=16)
    shares = match_scenes(pictures * 2 - 1, scenes)
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the model is written")
    parser.add_argument("--work", type=Path, required=True, help="for what is made on the way")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if (options.work / "vae").is_dir():
        vae = AutoencoderKL.from_pretrained(options.work / "vae").requires_grad_(False)
    else:
        vae = train_autoencoder(options.work)
        vae.save_pretrained(options.work / "vae")
    save_demo_model(train_denoiser(vae, options.work), options.out)


if __name__ == "__main__":
    main()
