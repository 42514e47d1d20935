"""A small classifier whose penultimate layer is a feature space, for use without Inception.

`scripts/train_feature_network.py` trains it. Three come with the project: for digits at 8x8,
Fashion-MNIST at 16x16 and the demo's scenes at 32x32. They are trained on clean images only, since
a network that has learned to ignore noise could not measure it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from latent_robust.errors import InputError
from latent_robust.files import write_atomically

HEADER = "feature_network"
ASSETS = Path(__file__).parent / "assets"


class FeatureNetwork(nn.Module):
    """Images (N, channels, size, size) in [-1, 1]  =>  class scores (N, classes)."""

    FEATURES = 64

    def __init__(self, classes: int, size: int, channels: int):
        super().__init__()
        self.classes, self.size, self.channels = classes, size, channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, self.FEATURES),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.FEATURES, classes)
        self.register_buffer(
            "scale", torch.ones(())
        )  # root mean square of `body`'s output on its data

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def features(self, images: Tensor) -> Tensor:
        """(N, 64), scaled to mean square 1 on the training data, so that distances in the features
        of different networks are of the same order."""
        return self.body(images) / self.scale


def split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """=>  indices to train on, and the fifth that is held out to measure the accuracy."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[count // 5 :], order[: count // 5]


def save_network(network: FeatureNetwork, path: Path, *, data: str, accuracy: float, seed: int):
    """Write the weights and their description to one safetensors file. data: name of the image set.

    The description is a single JSON text: safetensors writes several entries in random order, but
    equal networks should give equal files.
    """
    from safetensors.torch import save

    description = {
        "classes": network.classes,
        "size": network.size,
        "channels": network.channels,
        "data": data,
        "accuracy": accuracy,
        "seed": seed,
    }
    write_atomically(path, save(network.state_dict(), {HEADER: json.dumps(description)}))


def load_network(path: Path) -> tuple[FeatureNetwork, dict]:
    """=>  the network in evaluation mode, and the description from `save_network`.

    InputError for a file that is missing, damaged, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(
            f"no feature network at {path}; scripts/train_feature_network.py makes one"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if HEADER not in metadata:
        raise InputError(
            f"{path} is not a feature network: its header has no {HEADER!r}; "
            "scripts/train_feature_network.py makes one"
        )
    description = json.loads(metadata[HEADER])
    network = FeatureNetwork(*(description[key] for key in ("classes", "size", "channels")))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its own header: {error}") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise InputError(f"{path} holds non-finite weights; train it again")
    return network.eval().requires_grad_(False), description
