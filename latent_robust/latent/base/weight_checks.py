"""Checks of a checkpoint: missing, non-finite or pickled weights, and foreign tokenizers."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from latent_robust.errors import InputError

from .model_spec import PICKLES

# Raised by diffusers, transformers, safetensors and huggingface_hub for files they cannot use.
LIBRARY_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
DAMAGED = "The file may be damaged or belong to another model; download or copy it again"


def check_weights(part: nn.Module, what: str) -> None:
    """InputError for weights that were not loaded, or are not finite."""
    tensors = part.state_dict()
    refuse_missing([key for key, value in tensors.items() if value.is_meta], what)
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"{what} has NaN or infinite weights in {key}; the checkpoint is broken, or its "
                "values overflowed when it was saved in a lower precision. Use another copy of it"
            )


def check_tokenizers(pipeline: DiffusionPipeline, model: str) -> None:
    """InputError for a tokenizer whose vocabulary does not fit its text encoder. (When its files
    are missing, transformers creates a tokenizer of two tokens.)"""
    for suffix in ("", "_2", "_3"):
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        if encoder is None:
            continue
        tokens = len(getattr(pipeline, f"tokenizer{suffix}", None) or ())
        expected = encoder.config.vocab_size
        # T5's embedding is padded from 32,100 to 32,128 tokens.
        if not 0.9 * expected <= tokens <= expected:
            raise InputError(
                f"tokenizer{suffix} of {model} has {tokens} tokens, its text encoder {expected}; "
                "tokenizer files are missing or belong to another model. Download or copy the "
                "model again"
            )


def refuse_missing(keys: list[str], what: str) -> None:
    """InputError if there are any. keys: names of the missing weights; what: their owner."""
    if keys:
        raise InputError(
            f"{what} lacks {len(keys)} of its weights, among them {min(keys)}; random numbers "
            "would take their place. Download or copy the model again"
        )


def refuse_pickled_part(folder: Path) -> None:
    """InputError unless `folder`, of one part, holds weights in safetensors."""
    if list(folder.glob("*.safetensors")):
        return
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        raise InputError(
            f"{folder} holds its weights in a pickle, which can run code when it is loaded. If you "
            'trust it, convert the model once: python -c "from diffusers import DiffusionPipeline '
            f"as P; P.from_pretrained('{folder.parent}').save_pretrained('NEW')\" and use NEW"
        )
    raise InputError(f"{folder} holds no weights (*.safetensors). Download or copy the model again")


def first_sentence(error: Exception) -> str:
    """The first sentence of the message. Libraries add advice for programmers after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.split(r"\. ", (lines or [type(error).__name__])[0])[0].rstrip(".")
