"""One hash for everything that turns images and captions into what the network sees."""

from __future__ import annotations

import hashlib
import json

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .families import Family

# What changes with the place a model was loaded from, or with the libraries' versions.
NOT_PART_OF_A_MODEL = {"transformers_version", "dtype", "torch_dtype", "architectures"}


def encoders_identity(pipeline: DiffusionPipeline, family: Family) -> str:
    """sha256 (hex) over configurations, weights and vocabularies of the VAE and the text encoders,
    in the precision they are loaded in. About a second per gigabyte."""
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
    # Where FLUX stops reading depends on its network.
    digest.update(str(family.reads(pipeline)[1]).encode())
    return digest.hexdigest()


def configuration_of(part: nn.Module) -> dict:
    """Of a part of a pipeline, without what changes with the place it was loaded from."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in NOT_PART_OF_A_MODEL
    }


def _hash_weights(part: nn.Module, digest) -> None:
    for key, value in sorted(part.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
