"""A loaded model as components: network, VAE, text encoders and noise process.

Images and text are encoded, and latents decoded, in the same way for every family.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn

from latent_robust.core import NoiseProcess

from .families import Conditions, Family
from .folder import Dtypes
from .identity import encoders_identity
from .library_logging import silence_libraries
from .open import open_pipeline
from .recognise import recognise

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TEXT_BATCH = 64  # captions encoded at a time; T5 needs 3 GiB for 64


def load_components(
    model: str,
    *,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
    text_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Components:
    """Load a model for encoding, training or sampling.

    model: a diffusers folder, a single .safetensors file, a name on the Hugging Face Hub, or
    "demo"; offline: use only models that were downloaded before; dtype: of the network;
    text_dtype: of the text encoders, by default `dtype`. The VAE is always in float32.

    InputError for a model that does not exist, an unknown family, pickles, and missing or
    non-finite weights."""
    with silence_libraries():
        pipeline = open_pipeline(model, offline=offline, dtypes=Dtypes(dtype, text_dtype or dtype))
    pipeline.set_progress_bar_config(disable=True)
    return Components.of(pipeline.to(device), model)


@dataclass
class Components:
    """identity: SHA-256 (hex) over the configurations and weights of the VAE and the text encoders.
    It is part of the keys of the cache."""

    family: Family
    pipeline: DiffusionPipeline
    identity: str

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, model: str) -> Components:
        """Wrap a loaded pipeline: all parts in evaluation mode, VAE and text encoders frozen.

        InputError for an unknown family."""
        family = recognise(pipeline, model)
        components = cls(family, pipeline, encoders_identity(pipeline, family))
        components.network.eval()
        for encoder in (components.vae, *components.text_encoders.values()):
            encoder.eval().requires_grad_(False)
        return components

    @property
    def network(self) -> nn.Module:
        """The denoiser: a U-Net or a transformer."""
        return getattr(self.pipeline, self.family.network_name)

    @property
    def vae(self) -> AutoencoderKL:
        """RuntimeError if it was unloaded."""
        return self._require_loaded(self.pipeline.vae, "VAE")

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """By their names in the pipeline. Those that are absent or unloaded are left out."""
        encoders = {name: getattr(self.pipeline, name, None) for name in TEXT_ENCODERS}
        return {name: encoder for name, encoder in encoders.items() if encoder is not None}

    @cached_property
    def process(self) -> NoiseProcess:
        return self.family.process(self.pipeline)

    def encode_images(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """samples: (B, 3, H, W) in [-1, 1], sides multiples of `family.multiple`.
        =>  mean and std of the scaled latents, each (B, c, h, w), float32, on samples' device.

        Differentiable in `samples`."""
        vae, (shift, scale) = self.vae, self._scaling()
        moments = vae.encode(samples.to(vae.device, vae.dtype)).latent_dist
        mean = (moments.mean.float() - shift) * scale
        return mean.to(samples.device), (moments.std.float() * scale).to(samples.device)

    def encode_means(self, samples: Tensor) -> Tensor:
        """The means of `encode_images`, which the corruption encoder-poison attacks."""
        return self.encode_images(samples)[0]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents: (B, c, h, w), scaled, not packed.
        =>  (B, 3, H, W), float32, in about [-1, 1], on the latents' device."""
        vae, (shift, scale) = self.vae, self._scaling()
        unscaled = (latents / scale + shift).to(vae.device, vae.dtype)
        return vae.decode(unscaled).sample.float().to(latents.device)

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Conditions:
        """The network's text conditions for B captions, each (B, ...), on the CPU in the encoders'
        dtype. RuntimeError if the text encoders were unloaded."""
        parts = [
            self._on_cpu(self.family.encode_text, captions[i : i + TEXT_BATCH])
            for i in range(0, len(captions), TEXT_BATCH)
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @torch.no_grad()
    def empty_text(self) -> Conditions:
        """The text conditions of a dropped caption, each (1, ...): see `Family.empty_text`."""
        return self._on_cpu(self.family.empty_text)

    def cut_captions(self, captions: list[str]) -> list[int]:
        """Indices of the captions that exceed the text encoders' limit. Needs only the
        tokenizers."""
        return self.family.cut_captions(self.pipeline, captions)

    def unload_encoders(self, *, keep_vae: bool = False) -> None:
        """Free the memory of the text encoders and the VAE. To use them again, reload the model.

        keep_vae: keep the VAE, which decodes generated images."""
        for name in (*([] if keep_vae else ["vae"]), *self.text_encoders):
            setattr(self.pipeline, name, None)
        release_memory()

    @contextmanager
    def offload(self) -> Iterator[None]:
        """Move the network to the CPU inside, to make room on the device for another model.

        VAE and text encoders stay on the device: without a cache they encode every batch."""
        device = self.network.device
        try:
            self.network.to("cpu")
            release_memory()
            yield
        finally:
            release_memory()
            self.network.to(device)

    def without(self, *names: str) -> Components:
        """A copy that does not hold these parts of the pipeline, so that they can be freed while
        it is in use. Of the network the configuration stays: it defines FLUX's text limit, and the
        width of the zeros that replace an absent T5."""
        pipeline = copy(self.pipeline)
        for name in names:
            is_network = name == self.family.network_name
            setattr(pipeline, name, _ConfigOnly(self.network.config) if is_network else None)
        return replace(self, pipeline=pipeline)

    def _on_cpu(self, encode: Callable[..., Conditions], *captions: list[str]) -> Conditions:
        self._require_loaded(self.text_encoders or None, "text encoders")
        return {key: value.cpu() for key, value in encode(self.pipeline, *captions).items()}

    def _scaling(self) -> tuple[float, float]:
        """scaled = (latent - shift) * scale"""
        return self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor

    @staticmethod
    def _require_loaded(part, what: str):
        if part is None:
            raise RuntimeError(
                f"the {what} of this model were unloaded to free memory; encode before calling "
                "`unload_encoders()`, or load the components again"
            )
        return part


@dataclass
class _ConfigOnly:
    """Stands for a removed network. It must not be a module: a pipeline computes on the device of
    its first module."""

    config: Any


def release_memory() -> None:
    """Return unused memory to the device."""
    gc.collect()  # accelerate's autocast makes a reference cycle of a network and its forward
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
