"""A small classifier whose penultimate layer is a feature space, for use without Inception.

`scripts/train_feature_network.py` trains it. Four come with the project: for digits at 8x8,
Fashion-MNIST at 16x16, and the demo's scenes and CIFAR-10 at 32x32. They are trained on clean
images only, since a network that has learned to ignore noise could not measure it.
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


def small_body(channels: int) -> nn.Sequential:
    """Three convolutions, for drawings and digits."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.SiLU(),
    )


def residual_body(channels: int) -> nn.Sequential:
    """Seven convolutions, for photographs of 32x32."""
    layers = nn.Sequential(
        _convolution(channels, 32),
        _convolution(32, 64),
        nn.MaxPool2d(2),
        _Residual(64),
        _convolution(64, 128),
        nn.MaxPool2d(2),
        _Residual(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return layers.to(memory_format=torch.channels_last)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


# name: function of the number of channels, and how many features it gives
BODIES = {"small": (small_body, 64), "residual": (residual_body, 128)}


class FeatureNetwork(nn.Module):
    """Images (N, channels, size, size) in [-1, 1]  =>  class scores (N, classes)."""

    def __init__(self, classes: int, size: int, channels: int, body: str = "small"):
        super().__init__()
        self.classes, self.size, self.channels, self.body_name = classes, size, channels, body
        make_body, width = BODIES[body]
        self.body = make_body(channels)
        self.head = nn.Linear(width, classes)
        self.register_buffer(
            "scale", torch.ones(())
        )  # root mean square of `body`'s output on its data

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def features(self, images: Tensor) -> Tensor:
        """(N, 64 or 128), scaled to mean square 1 on the training data, so that distances in the
        features of different networks are of the same order."""
        return self.body(images) / self.scale


def split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """=>  indices to train on, and the fifth that is held out to measure the accuracy."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[count // 5 :], order[: count // 5]


def save_network(network: FeatureNetwork, path: Path, *, data: str, accuracy: float, seed: int):
    """Write the weights, in 16 bits where there are many, and their description to one safetensors
    file. data: name of the image set.

    The description is a single JSON text: safetensors writes several entries in random order, but
    equal networks should give equal files.
    """
    from safetensors.torch import save

    description = {
        "classes": network.classes,
        "size": network.size,
        "channels": network.channels,
        "body": network.body_name,
        "data": data,
        "accuracy": accuracy,
        "seed": seed,
    }
    weights = {name: w.contiguous() for name, w in network.state_dict().items()}
    if network.body_name == "residual":
        weights = {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}
    write_atomically(path, save(weights, {HEADER: json.dumps(description)}))


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
    shape = {key: description[key] for key in ("classes", "size", "channels")}
    network = FeatureNetwork(**shape, body=description.get("body", "small"))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its own header: {error}") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise InputError(f"{path} holds non-finite weights; train it again")
    return network.eval().requires_grad_(False), description
