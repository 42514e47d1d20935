"""A checkpoint taken apart: network, VAE, text encoders, and its noise process."""

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
CAPTIONS = 64  # that are encoded at a time: 3 GiB of T5's


def load_components(
    model: str,
    *,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
    text_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Components:
    """model: a diffusers folder, a single .safetensors file, a name on the Hugging Face hub, or
    "demo"; offline: of the hub's models only those already downloaded; dtype: of the network;
    text_dtype: of the text encoders, by default the same. The VAE is in float32.

    Raises InputError: no such model, an unknown family, pickles, missing or non-finite weights."""
    with silence_libraries():
        pipeline = open_pipeline(model, offline=offline, dtypes=Dtypes(dtype, text_dtype or dtype))
    pipeline.set_progress_bar_config(disable=True)
    return Components.of(pipeline.to(device), model)


@dataclass
class Components:
    """identity: sha256 over configuration and weights of everything that encodes images and
    text, for caches of what they made."""

    family: Family
    pipeline: DiffusionPipeline
    identity: str

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, model: str) -> Components:
        """Takes over a loaded pipeline: eval mode, VAE and text encoders frozen."""
        family = recognise(pipeline, model)
        components = cls(family, pipeline, encoders_identity(pipeline, family))
        components.network.eval()
        for encoder in (components.vae, *components.text_encoders.values()):
            encoder.eval().requires_grad_(False)
        return components

    @property
    def network(self) -> nn.Module:
        return getattr(self.pipeline, self.family.network_name)

    @property
    def vae(self) -> AutoencoderKL:
        return self._loaded(self.pipeline.vae, "VAE")

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """By their names in the pipeline; SD 3's T5 may be absent."""
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
        """What encoder-poison attacks: the means of `encode_images`."""
        return self.encode_images(samples)[0]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents: (B, c, h, w), scaled, not packed.  =>  (B, 3, H, W), float32, about [-1, 1]."""
        vae, (shift, scale) = self.vae, self._scaling()
        unscaled = (latents / scale + shift).to(vae.device, vae.dtype)
        return vae.decode(unscaled).sample.float().to(latents.device)

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Conditions:
        """What the network is given, each (B, ...), on the CPU in the encoders' dtype."""
        parts = [
            self._on_cpu(self.family.encode_text, captions[i : i + CAPTIONS])
            for i in range(0, len(captions), CAPTIONS)
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @torch.no_grad()
    def empty_text(self) -> Conditions:
        """What caption dropout trains with, each (1, ...): see `Family.empty_text`."""
        return self._on_cpu(self.family.empty_text)

    def cut_captions(self, captions: list[str]) -> list[int]:
        """Indices of captions that are longer than what the text encoders read. Needs the
        tokenizers only."""
        return self.family.cut_captions(self.pipeline, captions)

    def unload_encoders(self, *, keep_vae: bool = False) -> None:
        """Frees the memory of VAE and text encoders; whoever needs them again loads anew.

        keep_vae: for who draws images later."""
        for name in (*([] if keep_vae else ["vae"]), *self.text_encoders):
            setattr(self.pipeline, name, None)
        release_memory()

    @contextmanager
    def offload(self) -> Iterator[None]:
        """The network on the CPU meanwhile, so that another finds room on the device. What encodes
        stays: the data may be encoded as they are asked for."""
        device = self.network.device
        try:
            self.network.to("cpu")
            release_memory()
            yield
        finally:
            release_memory()
            self.network.to(device)

    def without(self, *names: str) -> Components:
        """The same but for these parts of the pipeline, for what outlives them. Of the network its
        configuration stays: how far FLUX reads stands in it, and how wide T5's absence is."""
        pipeline = copy(self.pipeline)
        for name in names:
            is_network = name == self.family.network_name
            setattr(pipeline, name, _Configuration(self.network.config) if is_network else None)
        return replace(self, pipeline=pipeline)

    def _on_cpu(self, encode: Callable[..., Conditions], *captions: list[str]) -> Conditions:
        self._loaded(self.text_encoders or None, "text encoders")
        return {key: value.cpu() for key, value in encode(self.pipeline, *captions).items()}

    def _scaling(self) -> tuple[float, float]:
        """scaled = (latent - shift) * scale"""
        return self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor

    @staticmethod
    def _loaded(part, what: str):
        if part is None:
            raise RuntimeError(
                f"the {what} of this model were unloaded to free memory; encode before "
                "`unload_encoders()`, or load the components anew"
            )
        return part


@dataclass
class _Configuration:
    """What is left of a network. No module: a pipeline computes where its first module is."""

    config: Any


def release_memory() -> None:
    """Gives what nothing uses any more back to the device."""
    gc.collect()  # accelerate's autocast makes a cycle of a network and its forward
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
