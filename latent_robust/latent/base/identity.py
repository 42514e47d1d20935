"""One hash over everything that encodes images and captions, used in the keys of the cache."""

from __future__ import annotations

import hashlib
import json

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .families import Family

# Keys of a configuration that depend on where the model was loaded from, or on library versions.
UNSTABLE_KEYS = {"transformers_version", "dtype", "torch_dtype", "architectures"}


def encoders_identity(pipeline: DiffusionPipeline, family: Family) -> str:
    """SHA-256 (hex) over the configurations, weights and vocabularies of the VAE and the text
    encoders, in the precision they are loaded in. Takes about a second per gigabyte."""
    digest = hashlib.sha256(family.name.encode())
    for name, part in sorted(pipeline.components.items()):
        if part is None or not name.startswith(("vae", "text_encoder", "tokenizer")):
            continue
        if isinstance(part, nn.Module):
            facts = configuration_of(part)
        else:
            facts = [part.get_vocab(), part.model_max_length, part.pad_token_id]
        digest.update(f"\n{name} {json.dumps(facts, sort_keys=True, default=str)}\n".encode())
        if isinstance(part, nn.Module):
            _hash_weights(part, digest)
    # FLUX's text limit depends on its network.
    digest.update(str(family.text_limit(pipeline)[1]).encode())
    return digest.hexdigest()


def configuration_of(part: nn.Module) -> dict:
    """The configuration of a part of a pipeline, without UNSTABLE_KEYS."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in UNSTABLE_KEYS
    }


def _hash_weights(part: nn.Module, digest) -> None:
    for key, value in sorted(part.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
