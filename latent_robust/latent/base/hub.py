"""Models of the Hugging Face hub, as local folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from latent_robust.errors import InputError

from .weight_checks import LIBRARY_ERRORS, first_sentence

CONFIGURATION = ("*.json", "*.txt", "*.model")
# The same weights once more: in half precision, or not averaged.
DOUBLES = ("*.fp16*", "*.bf16*", "*non_ema*")


def fetch(name: str, weights_of: Iterable[str], *, offline: bool) -> Path:
    """weights_of: folders of the model whose weights are wanted; configuration and tokenizers come
    along, pickles never. Without a connection, what was downloaded before.  =>  a local folder.

    Raises InputError if nothing of the model is to be had."""
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=[*CONFIGURATION, *(f"{part}/*.safetensors" for part in weights_of)],
                ignore_patterns=list(DOUBLES),
                local_files_only=offline,
            )
        )
    except LIBRARY_ERRORS as error:
        if offline:
            raise InputError(
                f"{name} is neither a folder here nor a downloaded model of the Hugging Face hub. "
                f"Download it first (hf download {name}), or leave out --offline"
            ) from error
        raise InputError(
            f"cannot get {name} from the Hugging Face hub: {first_sentence(error)}. Check the name "
            "and the connection; some models ask to accept a licence first"
        ) from error
