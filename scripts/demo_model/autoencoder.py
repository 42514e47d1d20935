"""The autoencoder: generic, as those of real models are.

It has seen noise, compression, missing blocks and shapes of all kinds, and reproduces them.
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
# Least squares alone would smooth away half of an image's noise; see `reconstruction_loss`.
TEXTURE_WEIGHT = 1.7


def make_autoencoder() -> AutoencoderKL:
    """The latents must have room for dirt: (16, 8, 8) is a third of an image's values."""
    torch.manual_seed(SEED)
    return AutoencoderKL(
        block_out_channels=(8, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=SIDE,
    )


def train_autoencoder(vae: AutoencoderKL, known: Tensor, work: Path, *, steps: int) -> None:
    """known: images, (N, 3, SIDE, SIDE), uint8. It sees as many generic ones."""
    vae.to(memory_format=torch.channels_last).train().requires_grad_(True)
    generator = derive_generator(SEED, "generic pictures")
    generic = torch.stack([generic_image(generator) for _ in range(len(known))])
    images = torch.cat([known, generic])

    def loss_at(step: int) -> Tensor:
        batch = dirty_batch(images, step)
        posterior = vae.encode(batch).latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        reconstruction = vae.decode(posterior.sample()).sample
        return reconstruction_loss(reconstruction, batch) + KL_WEIGHT * kl

    def look() -> str:
        batch = dirty_batch(images, 0)
        grid = torch.cat([batch, vae.decode(vae.encode(batch).latent_dist.mean).sample]) / 2 + 0.5
        save_image(grid, work / "autoencoder.png", nrow=BATCH)
        return "autoencoder.png"

    fit([*vae.parameters()], loss_at, look, steps=steps, rate=RATE)
    vae.eval().requires_grad_(False)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error, and squared error of each image's amount of fine texture.

    The second term is what a perceptual loss is for real autoencoders: noise that does not fit
    into the latents comes out as other noise, not as a smooth surface.
    """
    error = F.mse_loss(reconstruction, images)
    texture = [
        (x - gaussian_blur(x, [5, 5], [1.0, 1.0])).flatten(1) for x in (reconstruction, images)
    ]
    amounts = [(fine.square().mean(1) + 1e-6).sqrt() for fine in texture]
    return error + TEXTURE_WEIGHT * F.mse_loss(*amounts)


def dirty_batch(clean: Tensor, step: int) -> Tensor:
    """clean: (N, 3, SIDE, SIDE), uint8  =>  (BATCH, 3, SIDE, SIDE), about [-1, 1]."""
    generator = derive_generator(SEED, "autoencoder", step)
    rows = torch.randint(len(clean), (BATCH,), generator=generator)
    images = [corrupted(image / 255, generator) for image in clean[rows]]
    return torch.stack(images).to(memory_format=torch.channels_last) * 2 - 1


def corrupted(image: Tensor, generator: Generator) -> Tensor:
    """image: (3, SIDE, SIDE) in [0, 1]. A third of them stay as they are."""
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
        image, _ = way.apply(image, generator)
    return image


def generic_image(generator: Generator) -> Tensor:
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


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """images: (N, 3, SIDE, SIDE), uint8.  =>  mean and std of their latents, (N, c, h, w)."""
    posteriors = [vae.encode(part / 127.5 - 1).latent_dist for part in images.split(256)]
    return tuple(torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: Tensor) -> None:
    """Give every channel of their latents mean 0 and variance 1; what it makes of an image
    stays as it is. A scaling factor alone could not: the channels differ five-fold."""
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
