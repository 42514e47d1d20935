"""Distances between sets of images, the noise in a set, and its similarity to the training images.

The distances between sets are torch-fidelity's, on features in float64.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_robust.errors import InputError

from .features import Extractor

LEAST = 4  # samples, and reference images, that the kernel distance needs
PROJECTIONS = 256  # random directions of MIND
_CHUNK = 512  # images at a time: 25 MB of 3 x 64 x 64 images in float32


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); FID with Inception features.

    a: (N, D), b: (M, D), N, M >= 2. It is biased upwards, strongly so with N or M below D: compare
    only distances of equal sample counts.
    """
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    a, b = _checked(a, b, 2, "the Fréchet distance")
    if min(len(a), len(b)) < a.shape[1]:
        return _frechet_of_few(a.double(), b.double())
    statistics = fid_features_to_statistics(a), fid_features_to_statistics(b)
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def _frechet_of_few(a: Tensor, b: Tensor) -> float:
    """The same without D x D matrices, which would take minutes for raw pixels.

    With C = X^T X of the centred, scaled rows X, the eigenvalues of C_a C_b are the squared
    singular values of X_a X_b^T, so that tr (C_a C_b)^(1/2) is the sum of these.
    """
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = ((x - m) / (len(x) - 1) ** 0.5 for x, m in ((a, mean_a), (b, mean_b)))
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * overlap
    return distance.item()


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): mean and standard deviation over 100 random subsets.

    a: (N, D), b: (M, D), N, M >= 4. A subset has at most 1,000 rows and at most half of a set:
    subsets that are the whole set would all be equal, with a standard deviation of 0.
    """
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    a, b = _checked(a, b, LEAST, "the kernel distance")
    size = min(1000, len(a) // 2, len(b) // 2)
    metric = kid_features_to_metric(a, b, kid_subset_size=size, rng_seed=seed, verbose=False)
    return metric[KEY_METRIC_KID_MEAN], metric[KEY_METRIC_KID_STD]


def mind(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """MIND, the mean of sorted random projections: a sliced Wasserstein distance, squared.

    a: (N, D), b: (M, D), N, M >= 2. On a random direction both sets are sorted and compared value
    by value; the mean over PROJECTIONS directions is multiplied by D. Like the Fréchet distance it
    is |d|^2 for a shift by d, but it needs no covariance, and sees more than mean and covariance.
    """
    a, b = _checked(a, b, 2, "MIND")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], PROJECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    count = min(len(a), len(b))
    one, other = (_sorted(values @ directions, count) for values in (a, b))
    return (one - other).square().mean().item() * a.shape[1]


def _sorted(values: Tensor, count: int) -> Tensor:
    """`count` quantiles of each column: the sorted values themselves if there are as many."""
    ordered = values.sort(0).values
    if len(ordered) == count:
        return ordered
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * len(ordered) - 0.5
    low = places.floor().clamp(0, len(ordered) - 2).long()
    return torch.lerp(ordered[low], ordered[low + 1], (places - low)[:, None])


def detail(images: Tensor) -> float:
    """Mean power of the finest details: of frequencies above half of the highest one.

    images: (N, C, H, W). Noise raises it and smoothing lowers it, so the ratio to that of clean
    images should be 1. Other measures may praise images that are only smooth.
    """
    height, width = images.shape[-2:]
    frequencies = torch.maximum(
        torch.fft.fftfreq(height).abs()[:, None], torch.fft.rfftfreq(width)[None]
    )
    fine = frequencies > 0.25
    total = 0.0
    for batch in images.detach().split(_CHUNK):
        spectrum = torch.fft.rfft2(batch.cpu().double(), norm="ortho").abs().square()
        total += spectrum[..., fine].mean((1, 2)).sum().item()
    return total / len(images)


def precision_recall(a: Tensor, b: Tensor, k: int = 3) -> tuple[float, float]:
    """The share of a within b's manifold, and of b within a's (Kynkäänniemi et al. 2019).

    a: generated (N, D), b: real (M, D), N, M > k. A manifold is the union of balls around its
    points; the radius of each is the distance to the k-th neighbour.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    a, b = _checked(a, b, k + 1, f"precision and recall with {k} neighbours")
    metric = prc_features_to_metric(
        a, b, prc_neighborhood=k, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    return metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]


def residual_noise(images: Tensor) -> float:
    """Standard deviation of the noise, estimated blindly (Immerkær 1996), in the images' units.

    images: (N, C, H, W), H, W >= 3. A difference of two Laplacians cancels structure up to second
    order; its mean absolute response to noise of std 1 is 6 sqrt(2 / pi). Fine structure counts as
    noise: clean 8x8 digits in [-1, 1] have .295. Compare it with the value of clean images.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 3:
        raise InputError(
            f"residual noise needs images (N, C, H, W) of at least 3x3, got {tuple(images.shape)}"
        )
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=torch.float64)
    total, count = 0.0, 0
    for batch in images.detach().split(_CHUNK):
        response = F.conv2d(batch.cpu().double().flatten(0, 1)[:, None], kernel[None, None])
        total, count = total + response.abs().sum().item(), count + response.numel()
    return total / count * (torch.pi / 2) ** 0.5 / 6


def nearest_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Euclidean distance of each image to the nearest of the reference, in raw pixels.

    images: (N, C, H, W); reference: (M, C, H, W).  =>  (N,), float32. Smaller is not always better:
    copies of the reference have 0.

    The nearest image is found by |x|^2 - 2 x y + |y|^2 in float32; of two at almost the same
    distance, rounding may choose either. The distance to it is then computed directly. Memory does
    not grow with N and M, since images are compared in chunks.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"images of {tuple(images.shape[1:])} cannot be compared with a reference of "
            f"{tuple(reference.shape[1:])}; give both the same size and channels"
        )
    reference = reference.flatten(1)
    distances = []
    for batch in images.flatten(1).split(_CHUNK):
        batch = batch.float()
        smallest, nearest = batch.new_full((len(batch),), torch.inf), batch
        for part in reference.split(_CHUNK):
            distance, index = torch.cdist(batch, part.float()).min(1)
            nearer = distance < smallest
            smallest = torch.where(nearer, distance, smallest)
            nearest = torch.where(nearer[:, None], part[index].float(), nearest)
        distances.append((batch - nearest).norm(dim=1))
    return torch.cat(distances)


def nearest_similarity(features: Tensor, reference_features: Tensor) -> Tensor:
    """Cosine similarity of each row to the nearest of the reference: 1 is a copy.

    features: (N, D); reference_features: (M, D).  =>  (N,), in [-1, 1].
    """
    reference = F.normalize(reference_features.double())
    batches = F.normalize(features.double()).split(1024)
    return torch.cat([(batch @ reference.T).amax(1) for batch in batches])


# Reference images to measure against: this many, or as many as there are samples if these are more.
REFERENCE = 10_000


class FeatureCache:
    """Images (N, C, H, W) whose features are extracted on first use and then kept."""

    def __init__(self, images: Tensor):
        self.images = images
        self._features: dict[Extractor, Tensor] = {}

    def __call__(self, extractor: Extractor) -> Tensor:
        """=>  features (N, D)."""
        if extractor not in self._features:
            self._features[extractor] = extractor(self.images)
        return self._features[extractor]


def evaluate(
    samples: Tensor | FeatureCache,
    reference: Tensor | FeatureCache,
    extractors: Sequence[Extractor],
    *,
    training: Tensor | FeatureCache | None = None,
    seed: int = 0,
) -> dict:
    """All metrics of a table, as plain floats.

    samples: generated (N, C, H, W); reference: clean (M, C, H, W), or the training images if there
    are no clean ones; training: the training images, to find copies in the last extractor's
    features. All in [-1, 1]; pass a FeatureCache for images that are used in several calls.
    """
    generated, real = _cached(samples), _cached(reference)
    samples, reference = generated.images, real.images
    result: dict = {}
    for extractor in extractors:
        features, real_features = generated(extractor), real(extractor)
        kid, kid_std = kernel_distance(features, real_features, seed)
        precision, recall = precision_recall(features, real_features)
        result[extractor.name] = {
            "frechet": frechet_distance(features, real_features),
            "mind": mind(features, real_features, seed),
            "kid": kid,
            "kid_std": kid_std,
            "precision": precision,
            "recall": recall,
        }
    result["residual_noise"] = residual_noise(samples)
    result["residual_noise_reference"] = residual_noise(reference)
    result["detail"] = detail(samples) / max(detail(reference), 1e-12)
    result["nearest_distance"] = nearest_distance(samples, reference).mean().item()
    result["samples"] = len(samples)
    result["reference"] = len(reference)
    if training is not None and extractors:
        similarity = nearest_similarity(features, _cached(training)(extractors[-1]))
        result["training_similarity"] = {
            "mean": similarity.mean().item(),
            "p95": similarity.quantile(0.95).item(),
        }
    return result


def measure(
    samples: Tensor,
    training: Tensor,
    clean: Tensor | None,
    extractors: Sequence[Extractor],
    *,
    seed: int = 0,
) -> dict:
    """What metrics.json has of a run: the distances to clean images of its samples and of the
    training set. If no clean images are known (`clean` is None), only the distances of the samples
    to the training images."""
    train_images = FeatureCache(training)
    if clean is None:
        metrics = evaluate(samples, train_images, extractors, training=train_images, seed=seed)
        return {"compared_with": "training", "metrics": metrics}
    reference = FeatureCache(clean)
    metrics = evaluate(samples, reference, extractors, training=train_images, seed=seed)
    floor = evaluate(train_images, reference, extractors, seed=seed)
    return {"compared_with": "clean", "metrics": metrics, "floors": {"training set": floor}}


def require_enough(
    features: Sequence[str], samples: int, training: Sized, clean: Sized | None
) -> None:
    """To be called before training. InputError if `measure` would have too few samples, training
    images or clean images for a distance. clean: None if no clean images are known."""
    images = min(len(training), len(training if clean is None else clean))
    if features and samples and min(samples, images) < LEAST:
        raise InputError(
            f"distances need at least {LEAST} samples and as many images, got --samples {samples}"
            f" and {images} images; give more, or --samples 0 to measure nothing"
        )


def _cached(images: Tensor | FeatureCache) -> FeatureCache:
    return images if isinstance(images, FeatureCache) else FeatureCache(images)


def _checked(a: Tensor, b: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"{what} needs features (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if min(len(a), len(b)) < least:
        raise InputError(
            f"{what} needs at least {least} samples on each side, got {len(a)} and {len(b)}; "
            "generate more"
        )
    return a.detach().cpu().double(), b.detach().cpu().double()
