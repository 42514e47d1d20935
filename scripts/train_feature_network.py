"""Train a small classifier on clean, labelled images. Its features are used to measure distances.

    python scripts/train_feature_network.py --data digits --size 8 \\
        --out latent_robust/evaluation/assets/digits.safetensors
    python scripts/train_feature_network.py --data fashion-mnist:DIR --size 16 --limit 20000 \\
        --epochs 20 --out latent_robust/evaluation/assets/fashion-mnist.safetensors
    python scripts/train_feature_network.py --data scenes --size 32 --channels 3 \\
        --out latent_robust/evaluation/assets/scenes.safetensors

These commands trained the networks of the package. The only augmentation is a shift by at most one
pixel. A network trained with noise would learn to ignore noise, which the metrics must not do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_robust.data import open_images
from latent_robust.errors import InputError
from latent_robust.evaluation.feature_network import FeatureNetwork, save_network, split


def train(
    images: Tensor, labels: Tensor, *, epochs: int = 30, batch_size: int = 64, seed: int = 0
) -> tuple[FeatureNetwork, float]:
    """images: (N, C, S, S), in [-1, 1]; labels: (N,), 0 .. classes - 1.

    =>  the network, and its accuracy on the fifth of the data that was held out.
    """
    torch.manual_seed(seed)
    network = FeatureNetwork(int(labels.max()) + 1, images.shape[-1], images.shape[1])
    training, held_out = split(len(images), seed)
    steps = epochs * (len(training) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        order = training[torch.randperm(len(training))]
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            loss = F.cross_entropy(network(shifted(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.4f}", file=sys.stderr)
    network.eval()
    with torch.no_grad():
        network.scale = network.body(images[training]).square().mean().sqrt()
        correct = network(images[held_out]).argmax(1) == labels[held_out]
    return network, correct.double().mean().item()


def shifted(images: Tensor) -> Tensor:
    """Shift each image by -1, 0 or 1 pixel in both directions, repeating its edge."""
    size = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    views = torch.stack(
        [padded[..., i : i + size, j : j + size] for i in range(3) for j in range(3)]
    )
    return views[torch.randint(9, (len(images),)), torch.arange(len(images))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="images with labels")
    parser.add_argument("--size", type=int, default=8, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--limit", type=int, help="use only the first images of the set")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    options = parser.parse_args()

    data = open_images(
        options.data, size=options.size, channels=options.channels, limit=options.limit
    )
    if data.labels is None:
        raise InputError(f"{options.data} has no labels; a classifier needs labelled images")
    images = torch.stack([data.image(i) for i in range(len(data))]) * 2 - 1
    network, accuracy = train(images, data.labels, epochs=options.epochs, seed=options.seed)
    name = options.data.partition(":")[0]
    save_network(network, options.out, data=name, accuracy=accuracy, seed=options.seed)
    print(f"accuracy on held-out images: {accuracy:.4f}; network: {options.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
