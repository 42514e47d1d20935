"""Full fine-tuning: the whole network is trained, and saved as a diffusers folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from diffusers.training_utils import cast_training_params

from latent_robust.files import sync_directory, writing

from .components import Components
from .lora import freeze


def unfreeze_network(components: Components) -> None:
    """Full fine-tuning: the network itself is trained, in float32; all else is frozen."""
    freeze(components)
    components.network.requires_grad_(True)
    cast_training_params(components.network)


def save_network(components: Components, folder: Path) -> Path:
    """Write the network as a diffusers folder.  =>  `folder/unet` or `folder/transformer`, whole
    or, after an InputError of the disk, absent."""
    final = folder / components.family.network_name
    temporary = folder / f".{final.name}.tmp"
    with writing(final):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
            components.network.save_pretrained(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            sync_directory(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final
