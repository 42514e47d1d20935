"""Train a small classifier on clean, labelled images. Its features are used to measure distances.

    python scripts/train_feature_network.py --data digits --size 8 \\
        --out latent_robust/evaluation/assets/digits.safetensors
    python scripts/train_feature_network.py --data fashion-mnist:DIR --size 16 --limit 20000 \\
        --epochs 20 --out latent_robust/evaluation/assets/fashion-mnist.safetensors
    python scripts/train_feature_network.py --data scenes --size 32 --channels 3 \\
        --out latent_robust/evaluation/assets/scenes.safetensors
    python scripts/train_feature_network.py --data parquet:data/cifar10-train.parquet --size 32 \\
        --channels 3 --body residual --flip --shift 4 --batch-size 128 \\
        --out latent_robust/evaluation/assets/cifar10.safetensors

These commands trained the networks of the package. The only augmentations are a shift and, for
CIFAR-10, a mirror image. A network trained with noise would learn to ignore noise, which the
metrics must not do.
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
from latent_robust.evaluation.feature_network import BODIES, FeatureNetwork, save_network, split

TRAINING = ("body", "epochs", "batch_size", "shift", "flip", "seed")  # options for `train`


def train(
    images: Tensor,
    labels: Tensor,
    *,
    body: str = "small",
    epochs: int = 30,
    batch_size: int = 64,
    shift: int = 1,
    flip: bool = False,
    seed: int = 0,
) -> tuple[FeatureNetwork, float]:
    """images: (N, C, S, S), in [-1, 1]; labels: (N,), 0 .. classes - 1.

    =>  the network, and its accuracy on the fifth of the data that was held out.
    """
    torch.manual_seed(seed)
    network = FeatureNetwork(int(labels.max()) + 1, images.shape[-1], images.shape[1], body)
    training, held_out = split(len(images), seed)
    steps = epochs * (len(training) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        order = training[torch.randperm(len(training))]
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            batch = shifted(images[rows], shift)
            if flip:
                batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            loss = F.cross_entropy(network(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.4f}", file=sys.stderr)
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.body(images[rows]) for rows in training.split(500)])
        network.scale = features.square().mean().sqrt()
        scores = torch.cat([network(images[rows]) for rows in held_out.split(500)])
    return network, (scores.argmax(1) == labels[held_out]).double().mean().item()


def shifted(images: Tensor, most: int) -> Tensor:
    """Shift each image by at most `most` pixels in both directions, repeating its edge."""
    size, places = images.shape[-1], 2 * most + 1
    padded = F.pad(images, (most,) * 4, mode="replicate")
    corners = [divmod(place, places) for place in torch.randint(places**2, (len(images),)).tolist()]
    pairs = zip(padded, corners, strict=True)
    return torch.stack([x[:, i : i + size, j : j + size] for x, (i, j) in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="images with labels")
    parser.add_argument("--size", type=int, default=8, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--limit", type=int, help="use only the first images of the set")
    parser.add_argument("--body", default="small", choices=sorted(BODIES))
    parser.add_argument("--shift", type=int, default=1, help="pixels, at most, of a random shift")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--batch-size", type=int, default=64)
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
    network, accuracy = train(
        images,
        data.labels,
        **{name: getattr(options, name) for name in TRAINING},
    )
    kind, _, where = options.data.partition(":")
    name = Path(where).stem if kind == "parquet" else kind
    save_network(network, options.out, data=name, accuracy=accuracy, seed=options.seed)
    print(f"accuracy on held-out images: {accuracy:.4f}; network: {options.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
