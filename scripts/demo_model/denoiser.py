"""U-Net and text encoder of the demo model, trained together on clean captioned images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latent_robust.core.seeds import derive_generator
from latent_robust.data.sources.scenes import SIDE
from latent_robust.latent.base.demo_model import (
    clip_tokenizer,
    expand_vocabulary,
    known_tokens,
    make_pipeline,
)

from .autoencoder import encode, standardize
from .fitting import SEED, fit

BATCH = 16
DRAWS = 2  # noisy images per encoded caption, since encoding costs as much as denoising
RATE = 1e-3
CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0


def train_denoiser(
    vae: AutoencoderKL,
    images: Tensor,
    captions: Sequence[str],
    preview: Callable[[StableDiffusionPipeline], str],
    *,
    widths: tuple[int, ...],
    steps: int,
) -> StableDiffusionPipeline:
    """=>  the trained pipeline. Standardizes the latents of `vae` in place.

    images: (N, 3, SIDE, SIDE), uint8; captions: N texts; preview: called ten times; widths:
    channels of the U-Net at each resolution. The text encoder is trained with the tokens of the
    captions only; the other tokens are added at the end.
    """
    torch.manual_seed(SEED)
    standardize(vae, images[:2_000])
    mean, std = encode(vae, images)
    tokenizer = clip_tokenizer()
    tokens = known_tokens(tokenizer, captions)
    number = torch.zeros(len(tokenizer), dtype=torch.long)
    number[tokenizer.convert_tokens_to_ids(tokens)] = torch.arange(len(tokens))
    words = number[tokenize(tokenizer, captions)]  # (N, 77)
    empty = number[tokenize(tokenizer, [""])]
    text_encoder, unet = make_text_encoder(len(tokens)), make_unet(vae, widths)
    unet.to(memory_format=torch.channels_last)

    def pipeline() -> StableDiffusionPipeline:
        return make_pipeline(
            vae, expand_vocabulary(text_encoder, tokens, tokenizer), tokenizer, unet
        )

    scheduler = pipeline().scheduler

    def loss_at(step: int) -> Tensor:
        generator = derive_generator(SEED, "denoiser", step)
        rows = torch.randint(len(words), (BATCH // DRAWS,), generator=generator)
        dropped = torch.rand(len(rows), 1, generator=generator) < CAPTION_DROPOUT
        text = text_encoder(torch.where(dropped, empty, words[rows])).last_hidden_state
        text, rows = (x.repeat_interleave(DRAWS, 0) for x in (text, rows))
        noise, posterior_noise = torch.randn(2, *mean[rows].shape, generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        noisy = scheduler.add_noise(mean[rows] + std[rows] * posterior_noise, noise, t)
        error = (unet(noisy, t, text).sample - noise).square().mean((1, 2, 3))
        snr = compute_snr(scheduler, t)
        return (snr.clamp(max=SNR_GAMMA) / snr * error).mean()  # min-SNR: Hang et al. 2023

    parameters = [*text_encoder.parameters(), *unet.parameters()]
    fit(parameters, loss_at, lambda: preview(pipeline()), steps=steps, rate=RATE)
    return pipeline()


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


def make_unet(vae: AutoencoderKL, widths: tuple[int, ...]) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=64,
        attention_head_dim=2,  # the number of heads, as in every SD 1.x configuration
        norm_num_groups=8,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    return tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
