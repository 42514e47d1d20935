"""Download models of the Hugging Face Hub into local folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from latent_robust.errors import InputError

from .weight_checks import LIBRARY_ERRORS, first_sentence

CONFIGURATION = ("*.json", "*.txt", "*.model")
# Second copies of the weights: in half precision, or without averaging.
DUPLICATES = ("*.fp16*", "*.bf16*", "*non_ema*")


def fetch(name: str, weights_of: Iterable[str], *, offline: bool) -> Path:
    """Download a model, or find it among those downloaded before.  =>  a local folder.

    weights_of: folders of the model whose weights are needed. Configuration and tokenizers are
    always included, pickles never; offline: use only what was downloaded before. InputError if the
    model cannot be downloaded and is not there."""
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=[*CONFIGURATION, *(f"{part}/*.safetensors" for part in weights_of)],
                ignore_patterns=list(DUPLICATES),
                local_files_only=offline,
            )
        )
    except LIBRARY_ERRORS as error:
        if offline:
            raise InputError(
                f"{name} is neither a local folder nor a downloaded model of the Hugging Face Hub. "
                f"Download it first (hf download {name}), or leave out --offline"
            ) from error
        raise InputError(
            f"cannot download {name} from the Hugging Face Hub: {first_sentence(error)}. Check the "
            "name and the connection; for some models a licence must be accepted first"
        ) from error
