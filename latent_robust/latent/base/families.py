"""One class per model family: how to encode text, call the network and sample.

Each class does what the family's own diffusers pipeline does when it samples, so that a network is
trained on the inputs that it gets later. A family knows nothing about training.
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
# Our names of the text conditions -> the pipelines' names, which have a `negative_` form each.
EMBEDDINGS = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}

Conditions = dict[str, Tensor]
Denoiser = Callable[..., Tensor]


@dataclass(frozen=True)
class Family(ABC):
    """Everything that differs between model families. A new one is a subclass of this, and a line
    in `FAMILIES` in recognise.py.

    name: "sd1", "sd2", "sdxl", "sd3" or "flux".
    multiple: the sides of images must be multiples of this number of pixels.
    network_name: the pipeline's attribute that holds the denoiser.
    channel_packing: latent pixels that become channels of one input pixel of the network.
    kohya: whether the LoRA format of ComfyUI and A1111 covers this family.
    drops_to_empty_caption: whether `empty_text` is the encoding of "".
    last_layer_unused: names of the text encoders whose last layer has no effect on the output.
    default_targets: ends of the names of the layers that get LoRA adapters by default."""

    name: str
    multiple: int
    network_name: ClassVar[str] = "unet"
    channel_packing: ClassVar[int] = 1
    kohya: ClassVar[bool] = True
    drops_to_empty_caption: ClassVar[bool] = True
    last_layer_unused: ClassVar[tuple[str, ...]] = ()
    default_targets: ClassVar[tuple[str, ...]] = ATTENTION

    @classmethod
    @abstractmethod
    def of(cls, pipeline: DiffusionPipeline) -> Family:
        """The family of a loaded pipeline whose VAE is an AutoencoderKL."""

    def untrainable_kind(self, pipeline: DiffusionPipeline) -> str | None:
        """What this checkpoint is, with its article, if it has the family's classes but cannot be
        trained here. None if it can."""
        return None

    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        """The noise process of the model's training. TypeError if the scheduler does not define
        it."""
        return NoiseProcess.from_scheduler(pipeline.scheduler)

    # -------------------------------------------------------------------------------- text

    def encode_text(self, pipeline: DiffusionPipeline, captions: list[str]) -> Conditions:
        """The network's text conditions for B captions, each (B, ...), in the encoders' dtype.

        Differentiable. Captions longer than the encoders' limit are cut, see `cut_captions`."""
        with silence_libraries():
            return self._encode_text(pipeline, captions)

    @abstractmethod
    def _encode_text(self, pipeline: DiffusionPipeline, captions: list[str]) -> Conditions: ...

    def empty_text(self, pipeline: DiffusionPipeline) -> Conditions:
        """The unconditional input of classifier-free guidance at sampling time, each (1, ...)."""
        return self.encode_text(pipeline, [""])

    @abstractmethod
    def text_limit(self, pipeline: DiffusionPipeline) -> tuple[Any, int]:
        """The tokenizer of the encoder that reads the most tokens, and that number of tokens."""

    def cut_captions(self, pipeline: DiffusionPipeline, captions: list[str]) -> list[int]:
        """Indices of the captions whose end no text encoder reads."""
        tokenizer, limit = self.text_limit(pipeline)
        with silence_libraries():
            tokens = tokenizer(captions).input_ids if captions else []
        return [index for index, ids in enumerate(tokens) if len(ids) > limit]

    # ----------------------------------------------------------------------------- network

    @abstractmethod
    def predict(
        self, network: nn.Module, noisy: Tensor, t: Tensor, text: Conditions, sizes: Tensor | None
    ) -> Tensor:
        """One call of the network. noisy, text: in its dtype; t: (B,), float32 or integer."""

    def denoiser(
        self, network: nn.Module, text: Conditions, sizes: Tensor | None = None
    ) -> Denoiser:
        """`denoise(noisy, t, rows=slice(None))` for the text of one batch.

        network: may be wrapped for several processes; text: from `encode_text`, (B, ...); sizes:
        SDXL's micro-conditioning, see `time_ids`. The returned function takes noisy: (b, c, h, w)
        latents; t: (b,) in the NoiseProcess's unit; rows: the b rows of `text` that belong to them.
        It computes in the network's dtype and returns float32, (b, c, h, w)."""
        bare = getattr(network, "module", network)

        def denoise(noisy: Tensor, t: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
            text_rows = {
                key: value.to(noisy.device, bare.dtype)[rows] for key, value in text.items()
            }
            size_rows = None if sizes is None else sizes.to(noisy.device)[rows]
            t = t.to(noisy.device)
            return self.predict(network, noisy.to(bare.dtype), t, text_rows, size_rows).float()

        return denoise

    # ---------------------------------------------------------------------------- sampling

    def pipeline_arguments(self, text: Conditions, empty: Conditions) -> dict[str, Tensor]:
        """What the family's pipeline takes in place of a prompt. text: (B, ...); empty:
        `empty_text`, (1, ...)."""
        prompt = {EMBEDDINGS[key]: value for key, value in text.items()}
        negative = {
            f"negative_{EMBEDDINGS[key]}": value.expand_as(text[key])
            for key, value in empty.items()
        }
        return prompt | negative

    def unpack(self, latents: Tensor, pipeline: DiffusionPipeline, size: tuple[int, int]) -> Tensor:
        """latents: as the pipeline returns them; size: height and width of the images, in pixels.
        =>  (B, c, h, w)."""
        return latents


@dataclass(frozen=True)
class StableDiffusion(Family):
    """SD 1.x and 2.x. The scheduler says whether the network predicts epsilon or v."""

    @classmethod
    def of(cls, pipeline):
        # Only SD 2 has linear projections.
        name = "sd2" if pipeline.unet.config.use_linear_projection else "sd1"
        return cls(name, downsampling(pipeline))

    def _encode_text(self, pipeline, captions):
        text, _ = pipeline.encode_prompt(
            captions, pipeline.device, 1, do_classifier_free_guidance=False
        )
        return {"text": text}

    def text_limit(self, pipeline):
        return pipeline.tokenizer, pipeline.tokenizer.model_max_length

    def predict(self, network, noisy, t, text, sizes):
        return network(noisy, t, encoder_hidden_states=text["text"]).sample


@dataclass(frozen=True)
class StableDiffusionXL(Family):
    drops_to_empty_caption = False
    last_layer_unused = ("text_encoder",)

    @classmethod
    def of(cls, pipeline):
        return cls("sdxl", downsampling(pipeline))

    def untrainable_kind(self, pipeline):
        aesthetic = pipeline.config.get("requires_aesthetics_score")
        return "an SDXL refiner" if pipeline.text_encoder is None or aesthetic else None

    def _encode_text(self, pipeline, captions):
        text, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def empty_text(self, pipeline):
        """Zeros for the base model, whose config sets `force_zeros_for_empty_prompt`; not the
        encoding of ""."""
        _, text, _, pooled = pipeline.encode_prompt("")
        return {"text": text, "pooled": pooled}

    def text_limit(self, pipeline):
        return pipeline.tokenizer, pipeline.tokenizer.model_max_length

    def predict(self, network, noisy, t, text, sizes):
        if sizes is None:
            raise ValueError("SDXL needs the `sizes` of the images as a condition, got None")
        added = {"text_embeds": text["pooled"], "time_ids": time_ids(sizes)}
        return network(noisy, t, encoder_hidden_states=text["text"], added_cond_kwargs=added).sample


@dataclass(frozen=True)
class StableDiffusion3(Family):
    """SD 3 and 3.5. If the T5 encoder is absent, zeros take the place of its output."""

    network_name: ClassVar[str] = "transformer"
    kohya: ClassVar[bool] = False
    default_targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    T5_LENGTH: ClassVar[int] = 256  # the default of StableDiffusion3Pipeline, in tokens

    @classmethod
    def of(cls, pipeline):
        return cls("sd3", downsampling(pipeline) * pipeline.transformer.config.patch_size)

    def _encode_text(self, pipeline, captions):
        text, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def text_limit(self, pipeline):
        if pipeline.text_encoder_3 is None:
            return pipeline.tokenizer, pipeline.tokenizer.model_max_length
        return pipeline.tokenizer_3, self.T5_LENGTH

    def predict(self, network, noisy, t, text, sizes):
        return network(
            noisy, encoder_hidden_states=text["text"], pooled_projections=text["pooled"], timestep=t
        ).sample


@dataclass(frozen=True)
class Flux(Family):
    """FLUX.1. "dev" is distilled for guidance and takes its strength as an input; "schnell" does
    not."""

    network_name: ClassVar[str] = "transformer"
    channel_packing: ClassVar[int] = 4
    kohya: ClassVar[bool] = False
    default_targets: ClassVar[tuple[str, ...]] = (*JOINT_ATTENTION, *FLUX_FEED_FORWARD)
    # At guidance 1 "dev" predicts the distribution of the data, which is the target of training.
    TRAINING_GUIDANCE: ClassVar[float] = 1.0

    @classmethod
    def of(cls, pipeline):
        return cls("flux", 2 * downsampling(pipeline))

    def _encode_text(self, pipeline, captions):
        text, pooled, _ = pipeline.encode_prompt(
            captions, None, max_sequence_length=self.text_limit(pipeline)[1]
        )
        return {"text": text, "pooled": pooled}

    def text_limit(self, pipeline):
        """512 tokens is the pipeline's default; "schnell" was trained with 256."""
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

    def pipeline_arguments(self, text, empty):
        """No negative prompt: FLUX has no classifier-free guidance."""
        return {EMBEDDINGS[key]: value for key, value in text.items()}

    def unpack(self, latents, pipeline, size):
        return FluxPipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)


def downsampling(pipeline: DiffusionPipeline) -> int:
    """Pixels a side of an image per pixel a side of its latents."""
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def time_ids(sizes: Tensor) -> Tensor:
    """SDXL's micro-conditioning (arXiv:2307.01952, section 2.2), in pixels.

    sizes: (B, 2), height and width of images that were neither resized nor cropped; or (B, 6),
    original height and width, the crop's top and left, target height and width.
    =>  (B, 6) float32."""
    if sizes.shape[-1] == 2:
        sizes = torch.cat([sizes, torch.zeros_like(sizes), sizes], dim=-1)
    return sizes.float()
