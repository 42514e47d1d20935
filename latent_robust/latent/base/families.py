"""The model families, one small adapter each: how to encode text, pack latents, scale time.

A family knows nothing of training. What it says is what the family's own diffusers pipeline does
at sampling, so that a network is trained on what it will be asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor, nn

from latent_robust.core import NoiseProcess

from .library_logging import silence_libraries

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (
    *(f"attn.{name}" for name in ATTENTION),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
FLUX_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

Conditions = dict[str, Tensor]
Denoiser = Callable[..., Tensor]


@dataclass(frozen=True)
class Family(ABC):
    """name: "sd1", "sd2", "sdxl", "sd3" or "flux".
    multiple: the sides of images must be multiples of so many pixels.
    default_targets: the ends of the names of the layers that get LoRA adapters.
    kohya: whether ComfyUI's and A1111's LoRA format has this family."""

    name: str
    multiple: int
    network_name: ClassVar[str] = "unet"
    kohya: ClassVar[bool] = True
    drops_to_empty_caption: ClassVar[bool] = True  # or to something else, see `empty_text`
    unread: ClassVar[tuple[str, ...]] = ()  # text encoders of whose last layer nothing is read
    default_targets: ClassVar[tuple[str, ...]] = ATTENTION

    def encode_text(self, pipeline: DiffusionPipeline, captions: list[str]) -> Conditions:
        """What the network is given for these captions, each (B, ...), in the encoders' dtype.
        Differentiable; captions longer than the encoders read are cut, see `cut_captions`."""
        with silence_libraries():
            return self._encode_text(pipeline, captions)

    def empty_text(self, pipeline: DiffusionPipeline) -> Conditions:
        """What classifier-free guidance compares with when it samples, each (1, ...)."""
        return self.encode_text(pipeline, [""])

    @abstractmethod
    def _encode_text(self, pipeline: DiffusionPipeline, captions: list[str]) -> Conditions: ...

    @abstractmethod
    def reads(self, pipeline: DiffusionPipeline) -> tuple[Any, int]:
        """The tokenizer whose encoder reads furthest, and how many tokens it reads."""

    @abstractmethod
    def predict(
        self, network: nn.Module, noisy: Tensor, t: Tensor, text: Conditions, sizes: Tensor | None
    ) -> Tensor:
        """One call of the network. noisy, text: in its dtype; t: (B,), float32 or integer."""

    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        return NoiseProcess.from_scheduler(pipeline.scheduler)

    def cut_captions(self, pipeline: DiffusionPipeline, captions: list[str]) -> list[int]:
        """Indices of the captions of which no text encoder reads the end."""
        tokenizer, length = self.reads(pipeline)
        with silence_libraries():
            tokens = tokenizer(captions).input_ids if captions else []
        return [index for index, ids in enumerate(tokens) if len(ids) > length]

    def denoiser(
        self, network: nn.Module, text: Conditions, sizes: Tensor | None = None
    ) -> Denoiser:
        """`denoise(noisy, t, rows=slice(None))` for the text of one batch.

        text: as `encode_text` gives it, (B, ...); sizes: SDXL's micro-conditioning, see `time_ids`.
        The returned function takes noisy: (b, c, h, w) latents; t: (b,) in the NoiseProcess's
        unit; rows: which b rows of `text` they belong to. It computes in the network's dtype and
        answers in float32, (b, c, h, w). A network wrapped for several processes is fine."""
        bare = getattr(network, "module", network)

        def denoise(noisy: Tensor, t: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
            given = {key: value.to(noisy.device, bare.dtype)[rows] for key, value in text.items()}
            of_rows = None if sizes is None else sizes.to(noisy.device)[rows]
            t = t.to(noisy.device)
            return self.predict(network, noisy.to(bare.dtype), t, given, of_rows).float()

        return denoise


@dataclass(frozen=True)
class StableDiffusion(Family):
    """SD 1.x and 2.x; the scheduler says whether the network predicts epsilon or v."""

    def _encode_text(self, pipeline, captions):
        text, _ = pipeline.encode_prompt(
            captions, pipeline.device, 1, do_classifier_free_guidance=False
        )
        return {"text": text}

    def reads(self, pipeline):
        return pipeline.tokenizer, pipeline.tokenizer.model_max_length

    def predict(self, network, noisy, t, text, sizes):
        return network(noisy, t, encoder_hidden_states=text["text"]).sample


@dataclass(frozen=True)
class StableDiffusionXL(Family):
    drops_to_empty_caption = False
    unread = ("text_encoder",)

    def _encode_text(self, pipeline, captions):
        text, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def empty_text(self, pipeline):
        """Zeros for the base model, not the encoding of "": `force_zeros_for_empty_prompt`."""
        _, text, _, pooled = pipeline.encode_prompt("")
        return {"text": text, "pooled": pooled}

    def reads(self, pipeline):
        return pipeline.tokenizer, pipeline.tokenizer.model_max_length

    def predict(self, network, noisy, t, text, sizes):
        if sizes is None:
            raise ValueError("SDXL is also conditioned on the images' `sizes`, got None")
        added = {"text_embeds": text["pooled"], "time_ids": time_ids(sizes)}
        return network(noisy, t, encoder_hidden_states=text["text"], added_cond_kwargs=added).sample


def time_ids(sizes: Tensor) -> Tensor:
    """SDXL's micro-conditioning (arXiv:2307.01952, section 2.2), in pixels.

    sizes: (B, 2), height and width of images that were neither resized nor cropped; or (B, 6),
    original height and width, the crop's top and left, target height and width.
    =>  (B, 6) float32."""
    if sizes.shape[-1] == 2:
        sizes = torch.cat([sizes, torch.zeros_like(sizes), sizes], dim=-1)
    return sizes.float()


@dataclass(frozen=True)
class StableDiffusion3(Family):
    """SD 3 and 3.5. The T5 encoder may be absent, then zeros stand for what it would say."""

    network_name: ClassVar[str] = "transformer"
    kohya: ClassVar[bool] = False
    default_targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    T5_LENGTH: ClassVar[int] = 256  # of StableDiffusion3Pipeline

    def _encode_text(self, pipeline, captions):
        text, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def reads(self, pipeline):
        if pipeline.text_encoder_3 is None:
            return pipeline.tokenizer, pipeline.tokenizer.model_max_length
        return pipeline.tokenizer_3, self.T5_LENGTH

    def predict(self, network, noisy, t, text, sizes):
        return network(
            noisy, encoder_hidden_states=text["text"], pooled_projections=text["pooled"], timestep=t
        ).sample


@dataclass(frozen=True)
class Flux(Family):
    """FLUX.1. "dev" is distilled for guidance and is told its strength, "schnell" is not."""

    network_name: ClassVar[str] = "transformer"
    kohya: ClassVar[bool] = False
    default_targets: ClassVar[tuple[str, ...]] = (*JOINT_ATTENTION, *FLUX_FEED_FORWARD)
    # Guidance 1 asks "dev" for the distribution of the data, which is what training compares with.
    TRAINING_GUIDANCE: ClassVar[float] = 1.0

    def _encode_text(self, pipeline, captions):
        text, pooled, _ = pipeline.encode_prompt(
            captions, None, max_sequence_length=self.reads(pipeline)[1]
        )
        return {"text": text, "pooled": pooled}

    def reads(self, pipeline):
        """256 tokens is what "schnell" was trained with."""
        return pipeline.tokenizer_2, 512 if pipeline.transformer.config.guidance_embeds else 256

    def predict(self, network, noisy, t, text, sizes):
        batch, channels, height, width = noisy.shape
        like = {"device": noisy.device, "dtype": noisy.dtype}
        guidance = None
        if getattr(network, "module", network).config.guidance_embeds:
            guidance = torch.full((batch,), self.TRAINING_GUIDANCE, device=noisy.device)
        packed = network(
            FluxPipeline._pack_latents(noisy, batch, channels, height, width),
            encoder_hidden_states=text["text"],
            pooled_projections=text["pooled"],
            timestep=t / 1000,
            guidance=guidance,
            txt_ids=torch.zeros(text["text"].shape[1], 3, **like),
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, **like),
        ).sample
        return FluxPipeline._unpack_latents(packed, height, width, vae_scale_factor=1)
