"""Feature spaces in which distances between sets of images are measured."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from latent_robust.errors import InputError

from .feature_network import ASSETS, load_network

_LABELS = {
    "digits": "digit network",
    "fashion-mnist": "Fashion-MNIST network",
    "scenes": "scene network",
    "cifar10": "CIFAR-10 network",
}
_SPECS = (
    "pixels, digits, fashion-mnist, scenes, cifar10, inception, dinov2:DIR, "
    "open_clip:NAME:FILE.safetensors, open_clip:local-dir:DIR, or the FILE.safetensors of "
    "scripts/train_feature_network.py"
)
# Files that open_clip prefers to any pickle in the same folder.
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def metric_name(extractor: str, distance: str = "Fréchet") -> str:
    """Name of a distance in tables. Only Inception features give FID and KID; in other features it
    is called FD or KD and names them."""
    short = {"Fréchet": ("FID", "FD"), "kernel": ("KID", "KD")}[distance]
    return short[0] if extractor == "inception" else f"{short[1]} ({label(extractor)})"


def label(extractor: str) -> str:
    """The extractor's name for readers."""
    return _LABELS.get(extractor, extractor)


def headline_space(extractors: Iterable[str]) -> str | None:
    """The feature space, by its extractor's name, whose Fréchet distance a report shows first. None
    if there is none.

    It must see both noise and content. A classifier does: Inception, the networks shipped here, or
    one trained by the user. On the demo's scenes (clean: 0.18) noise of 0.4 takes its distance to
    7.4, and images with the right mean and covariance but no content take it to 12. Raw pixels come
    next: they see the noise, 17 to 337, but hardly the missing content, 37. DINOv2 and CLIP come
    last, since they are trained to see content in spite of noise.
    """

    def order(name: str) -> int:
        if name == "DINOv2" or name.startswith("open_clip"):
            return 2
        return 1 if name == "pixels" else 0

    return min(extractors, key=order, default=None)


@dataclass(frozen=True)
class Extractor:
    """Images (N, C, H, W), float, in [-1, 1] or beyond  =>  features (N, D), float32, CPU.

    network: a batch on `device` to (B, D). clamp: clip images to [-1, 1] first, as a viewer does.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    device: str | torch.device = "cpu"
    clamp: bool = True
    batch_size: int = 128

    @property
    def metric_name(self) -> str:
        return metric_name(self.name)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or len(images) == 0:
            raise InputError(f"need images (N, C, H, W), N > 0, got shape {tuple(images.shape)}")
        bad = (~images.isfinite()).flatten(1).any(1).sum().item()
        if bad:
            raise InputError(
                f"{bad} of {len(images)} images hold non-finite values, so they have no features; "
                "the model that generated them has diverged: train with a lower learning rate"
            )
        features = []
        for batch in images.split(self.batch_size):
            batch = batch.to(self.device, torch.float32)
            features.append(self.network(batch.clamp(-1, 1) if self.clamp else batch).float().cpu())
        return torch.cat(features)


def make_extractors(specs: Iterable[str], **options: Any) -> list[Extractor]:
    """options: as for `make_extractor`."""
    return [make_extractor(spec, **options) for spec in specs]


def make_extractor(
    spec: str,
    *,
    device: str | torch.device = "cpu",
    weights: Path | None = None,
    offline: bool = False,
) -> Extractor:
    """spec: `pixels` (raw values, where noise is visible), `digits`, `fashion-mnist`, `scenes`,
    `cifar10`, `inception`, `dinov2:DIR`, `open_clip:NAME:FILE.safetensors`,
    `open_clip:local-dir:DIR`, FILE.safetensors.

    weights: Inception's, a .pth or .safetensors file; downloaded if None, unless `offline`.
    InputError for an unknown spec or for missing weights.
    """
    kind, _, rest = spec.partition(":")
    if spec == "pixels":
        return Extractor("pixels", lambda x: x.flatten(1), device, clamp=False)
    if spec in _LABELS:
        return Extractor(spec, _classifier(ASSETS / f"{spec}.safetensors", device), device)
    if spec == "inception":
        return Extractor("inception", _inception(weights, offline, device), device)
    if kind == "dinov2" and rest:
        return Extractor("DINOv2", _dinov2(Path(rest), device), device)
    if kind == "open_clip" and ":" in rest:
        network, name = _open_clip(rest, device)
        return Extractor(name, network, device)
    if spec.endswith(".safetensors"):
        return Extractor(f"{Path(spec).stem} network", _classifier(Path(spec), device), device)
    raise InputError(f"unknown features {spec!r}; one of: {_SPECS}")


def _fit(images: Tensor, size: int | tuple[int, int], channels: int, mode="bilinear") -> Tensor:
    """Resize, and convert to gray or RGB, if necessary."""
    from torchvision.transforms.v2.functional import grayscale_to_rgb, rgb_to_grayscale

    if images.shape[1] != channels:
        images = rgb_to_grayscale(images) if channels == 1 else grayscale_to_rgb(images)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode=mode, antialias=True).clamp(-1, 1)


def _classifier(path: Path, device):
    network, _ = load_network(path)
    network.to(device)
    return lambda x: network.features(_fit(x, network.size, network.channels))


def _inception(weights: Path | None, offline: bool, device):
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    remedy = f"fetch {URL_INCEPTION_V3} once and give its path as `weights`, or use `pixels`"
    downloaded = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rpartition("/")[2])
    if weights is None and offline and downloaded.exists():
        weights = downloaded
    if weights is not None:
        state = _read_weights(Path(weights), remedy)
    elif offline:
        raise InputError(f"Inception features need weights, and downloads are off; {remedy}")
    else:
        state = torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
        )
    # torch-fidelity would unpickle the user's file without restriction, so it gets a safe copy.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=checked
        ).to(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{weights} does not hold Inception weights ({reason}); {remedy}"
        ) from error

    def features(x: Tensor) -> Tensor:
        images = ((_fit(x, x.shape[-2:], 3) + 1) * 127.5).round().to(torch.uint8)
        return network(images)[0]

    return features


def _read_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no Inception weights at {path}; {remedy}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises errors of its own
        raise InputError(
            f"cannot read Inception weights from {path} ({error}); {remedy}"
        ) from error


def _dinov2(folder: Path, device):
    from transformers import AutoModel
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    if not (folder / "config.json").is_file():
        raise InputError(f"no DINOv2 model at {folder}: expected config.json and model.safetensors")
    try:
        network, info = AutoModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load a DINOv2 model from {folder}: {error}") from error
    if info["missing_keys"]:  # transformers would only warn and fill them with random values
        raise InputError(f"{folder} lacks the weights {sorted(info['missing_keys'])[:3]} ...")
    network.eval().to(device)
    normalize = _normalizer(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, device)

    def features(x: Tensor) -> Tensor:  # Stein et al. 2023: 224 pixels, bicubic, CLS token
        return network(normalize(_fit(x, 224, 3, "bicubic"))).last_hidden_state[:, 0]

    return features


def _open_clip(spec: str, device):
    network, name = load_open_clip(spec, device)
    return open_clip_image_encoder(network, device), name


def load_open_clip(spec: str, device: str | torch.device = "cpu") -> tuple[nn.Module, str]:
    """spec: NAME:FILE.safetensors or local-dir:DIR.  =>  the model in evaluation mode; its name.

    InputError for weights that are missing or do not fit; pickles are not read.
    """
    import open_clip

    name, _, path = spec.partition(":")
    local = name == "local-dir"
    files = [Path(path) / file for file in _OPEN_CLIP_FILES] if local else [Path(path)]
    if path == "" or not any(f.is_file() and f.suffix == ".safetensors" for f in files):
        raise InputError(
            f"no open_clip weights for {spec!r}; give NAME:FILE.safetensors, NAME being one of "
            "open_clip.list_models(), or local-dir:DIR, a folder with open_clip_config.json and "
            f"{' or '.join(_OPEN_CLIP_FILES)}"
        )
    model, pretrained = (spec, None) if local else (name, path)
    try:
        network = open_clip.create_model(model, pretrained, require_pretrained=True)
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise InputError(f"cannot load open_clip model {spec!r}: {error}") from error
    return network.eval().to(device), f"open_clip {Path(path).name if local else name}"


def open_clip_image_encoder(network: nn.Module, device) -> Callable[[Tensor], Tensor]:
    """=>  images (B, C, H, W) in [-1, 1] to embeddings (B, D), not normalized."""
    import open_clip

    settings = open_clip.get_model_preprocess_cfg(network)
    normalize = _normalizer(settings["mean"], settings["std"], device)
    return lambda x: network.encode_image(normalize(_fit(x, settings["size"], 3, "bicubic")))


def _normalizer(mean, std, device) -> Callable[[Tensor], Tensor]:
    """=>  a function from images in [-1, 1] to the input of a network that was trained on images in
    [0, 1], normalized by this mean and std."""
    mean, std = (torch.tensor(c, device=device).reshape(1, 3, 1, 1) for c in (mean, std))
    return lambda x: ((x + 1) / 2 - mean) / std
