"""Full fine-tuning: train the whole network and save it as a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from diffusers.training_utils import cast_training_params

from latent_robust.files import whole_folder

from .base.components import Components
from .lora.adapters import freeze


def unfreeze_network(components: Components) -> None:
    """Make all weights of the network trainable, in float32, and freeze all other parts."""
    freeze(components)
    components.network.requires_grad_(True)
    cast_training_params(components.network)


def save_network(components: Components, folder: Path) -> Path:
    """Write the network as a diffusers folder.  =>  `folder/unet` or `folder/transformer`.

    InputError if the disk refuses; no partial folder remains."""
    final = folder / components.family.network_name
    with whole_folder(final) as temporary:
        components.network.save_pretrained(temporary)
    return final
