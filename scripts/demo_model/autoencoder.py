"""The autoencoder of the demo model. Like those of real models, it is generic.

It is trained to reproduce noise, compression, missing blocks and shapes of all kinds.
"""

from __future__ import annotations

from math import cos, pi, sin
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor
from torchvision.utils import save_image

from latent_robust.core.seeds import derive_generator
from latent_robust.data.contamination.kinds.image import (
    Blocks,
    Blur,
    Gaussian,
    Jpeg,
    SaltAndPepper,
)
from latent_robust.data.sources.scenes import SIDE

from .fitting import SEED, fit

BATCH = 8
RATE = 2e-3
KL_WEIGHT = 1e-5
# With squared error alone the decoder would remove half of an image's noise (reconstruction_loss).
TEXTURE_WEIGHT = 1.7


def make_autoencoder() -> AutoencoderKL:
    """Latents are (16, 8, 8), a third of the values of an image, so they can represent noise."""
    torch.manual_seed(SEED)
    return AutoencoderKL(
        block_out_channels=(8, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=SIDE,
    )


def train_autoencoder(vae: AutoencoderKL, images: Tensor, work: Path, *, steps: int) -> None:
    """Train `vae` in place on images (N, 3, SIDE, SIDE), uint8, and on as many generic ones."""
    vae.to(memory_format=torch.channels_last).train().requires_grad_(True)
    generator = derive_generator(SEED, "generic pictures")
    generic = torch.stack([generic_image(generator) for _ in range(len(images))])
    images = torch.cat([images, generic])

    def loss_at(step: int) -> Tensor:
        batch = dirty_batch(images, step)
        posterior = vae.encode(batch).latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        reconstruction = vae.decode(posterior.sample()).sample
        return reconstruction_loss(reconstruction, batch) + KL_WEIGHT * kl

    def preview() -> str:
        batch = dirty_batch(images, 0)
        grid = torch.cat([batch, vae.decode(vae.encode(batch).latent_dist.mean).sample]) / 2 + 0.5
        save_image(grid, work / "autoencoder.png", nrow=BATCH)
        return "autoencoder.png"

    fit([*vae.parameters()], loss_at, preview, steps=steps, rate=RATE)
    vae.eval().requires_grad_(False)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error of the images, plus squared error of their amounts of fine texture.

    The second term replaces the perceptual loss of real autoencoders. Noise that the latents cannot
    represent is then decoded as other noise, instead of as a smooth surface.
    """
    error = F.mse_loss(reconstruction, images)
    texture = [
        (x - gaussian_blur(x, [5, 5], [1.0, 1.0])).flatten(1) for x in (reconstruction, images)
    ]
    amounts = [(fine.square().mean(1) + 1e-6).sqrt() for fine in texture]
    return error + TEXTURE_WEIGHT * F.mse_loss(*amounts)


def dirty_batch(clean: Tensor, step: int) -> Tensor:
    """A batch of corrupted images for this step.

    clean: (N, 3, SIDE, SIDE), uint8  =>  (BATCH, 3, SIDE, SIDE), about [-1, 1]."""
    generator = derive_generator(SEED, "autoencoder", step)
    rows = torch.randint(len(clean), (BATCH,), generator=generator)
    images = [corrupted(image / 255, generator) for image in clean[rows]]
    return torch.stack(images).to(memory_format=torch.channels_last) * 2 - 1


def corrupted(image: Tensor, generator: Generator) -> Tensor:
    """Apply a random corruption to image (3, SIDE, SIDE) in [0, 1]; to a third of them, none."""
    kind, strength = torch.rand(2, generator=generator).tolist()
    corruptions = []
    if kind < 0.4:
        corruptions = [Gaussian(sigma=0.25 * strength, fraction=1)]
    elif kind < 0.46:
        corruptions = [Blur(sigma=0.3 + 1.5 * strength, fraction=1)]
    elif kind < 0.52:
        corruptions = [Jpeg(quality=int(10 + 80 * strength), fraction=1)]
    elif kind < 0.58:
        corruptions = [Blocks(size=0.1 + 0.3 * strength, count=2, fraction=1)]
    elif kind < 0.66:
        noise = SaltAndPepper(amount=0.1 * strength, fraction=1)
        corruptions = [Blur(sigma=0.7, fraction=1), noise]
    for corruption in corruptions:
        image, _ = corruption.apply(image, generator)
    return image


def generic_image(generator: Generator) -> Tensor:
    """=>  one to three random polygons, discs and outlines, (3, SIDE, SIDE), uint8."""

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
            width = int(uniform(0.2, 1.2) * radius)  # a disc, if wider than the radius
            draw.circle((x, y), radius, outline=color(), width=min(width, int(radius)))
            continue
        corners = int(uniform(3, 12))
        start = uniform(0, 2 * pi)
        radii = [radius * uniform(0.3, 1) for _ in range(corners)]
        angles = [start + 2 * pi * i / corners for i in range(corners)]
        points = [(x + r * cos(a), y + r * sin(a)) for r, a in zip(radii, angles, strict=True)]
        draw.polygon(points, fill=color())
    return pil_to_tensor(canvas.reduce(scale))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """images: (N, 3, SIDE, SIDE), uint8  =>  mean and std of their latents, each (N, c, h, w)."""
    posteriors = [vae.encode(part / 127.5 - 1).latent_dist for part in images.split(256)]
    return tuple(torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: Tensor) -> None:
    """Change `vae` in place so that each channel of the latents of `images` has mean 0, variance 1.

    Decoded images stay the same. One scaling factor is not enough: the std of the channels differs
    by up to a factor of five."""
    means, _ = encode(vae, images)
    std, mean = torch.std_mean(means, (0, 2, 3))
    channels = len(mean)
    moments, back = vae.quant_conv, vae.post_quant_conv  # both 1 x 1
    back.bias += back.weight[..., 0, 0] @ mean
    back.weight *= std[:, None, None]
    moments.weight[:channels] /= std[:, None, None, None]
    moments.bias[:channels] = (moments.bias[:channels] - mean) / std
    moments.bias[channels:] -= 2 * std.log()  # the logarithm of the variance
    vae.register_to_config(scaling_factor=1.0)
