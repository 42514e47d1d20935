"""What a checkpoint must not be, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from latent_robust.errors import InputError

from .model_spec import PICKLES

# What diffusers, transformers, safetensors and the hub raise for files that they cannot use.
LIBRARY_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
DAMAGED = "The file may be damaged or belong to another model; download or copy it again"


def check_weights(part: nn.Module, what: str) -> None:
    """Raises InputError for weights that were never read, or are not finite."""
    tensors = part.state_dict()
    refuse_missing([key for key, value in tensors.items() if value.is_meta], what)
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"{what} has NaN or infinite weights in {key}; the checkpoint is broken, or was "
                "saved in a precision that it does not fit in. Use another copy of it"
            )


def check_tokenizers(pipeline: DiffusionPipeline, model: str) -> None:
    """Raises InputError for a vocabulary that is not its text encoder's: transformers makes up a
    tokenizer of two tokens when the files are missing."""
    for suffix in ("", "_2", "_3"):
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        if encoder is None:
            continue
        known = len(getattr(pipeline, f"tokenizer{suffix}", None) or ())
        expected = encoder.config.vocab_size
        # T5's embedding is padded, from 32,100 to 32,128.
        if not 0.9 * expected <= known <= expected:
            raise InputError(
                f"tokenizer{suffix} of {model} knows {known} tokens, its text encoder {expected}; "
                "files of the tokenizer are missing or another model's. Download or copy it again"
            )


def refuse_missing(keys: list[str], what: str) -> None:
    if keys:
        raise InputError(
            f"{what} lacks {len(keys)} of its weights, among them {min(keys)}; they would be "
            "random numbers. Download or copy the model again"
        )


def refuse_pickled_part(folder: Path) -> None:
    """folder: of one part, with weights in safetensors or else refused."""
    if list(folder.glob("*.safetensors")):
        return
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        raise InputError(
            f"{folder} holds its weights in a pickle, which can run code when it is read. If you "
            'trust it, convert the model once: python -c "from diffusers import DiffusionPipeline '
            f"as P; P.from_pretrained('{folder.parent}').save_pretrained('NEW')\" and use NEW"
        )
    raise InputError(f"{folder} holds no weights (*.safetensors). Download or copy the model again")


def first_sentence(error: Exception) -> str:
    """The first sentence; what follows is advice for programmers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.split(r"\. ", (lines or [type(error).__name__])[0])[0].rstrip(".")
