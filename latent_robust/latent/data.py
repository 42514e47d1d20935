"""The pairs of a latent run: data, trusted pairs, contamination, and images of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from latent_robust.audit import reduced_noise
from latent_robust.audit.reduction import ORIGINALS
from latent_robust.audit.spectrum import CLEAN, measure_spectrum
from latent_robust.data import (
    ContaminatedPairs,
    PairSet,
    make_buckets,
    open_pairs,
    open_reference,
    parse_contamination,
)
from latent_robust.data.buckets import fit_bucket
from latent_robust.data.images import SMALL
from latent_robust.data.trusted import add_trusted
from latent_robust.evaluation.metrics import REFERENCE
from latent_robust.subset import evenly_spaced

from .base.components import Components
from .config import LatentConfig
from .spectrum import encoder_gain

# Images from which the noise and the spectrum of the latents are measured: more of them if they are
# small, because a small image contributes few values.
MIN_SPECTRUM_IMAGES, MAX_SPECTRUM_IMAGES, SPECTRUM_PIXELS = 64, 256, 2**22


GAIN_IMAGES = 16


def open_data(config: LatentConfig, out: Path) -> PairSet:
    return open_pairs(
        config.data,
        caption_column=config.caption_column,
        limit=config.limit,
        max_bad_fraction=config.max_bad_fraction,
        offline=config.offline,
        folder_repeats=config.folder_repeats,
        scan_cache=cache_file(config, out, "images.json"),
    )


def open_trusted(config: LatentConfig, source: PairSet) -> tuple[PairSet, list[int]]:
    """=>  the pairs with the trusted ones, and the indices of these."""
    return add_trusted(
        config.trusted,
        source,
        lambda data: open_reference(
            data,
            config.caption_column,
            max_bad_fraction=config.max_bad_fraction,
            offline=config.offline,
        ),
        contamination=config.contamination,
        seed=config.seed,
    )


def print_data(config: LatentConfig, source: PairSet, say: Callable[[str], None]) -> None:
    say(f"{config.data}: {source.summary()}")
    for what, names in (
        ("without a caption", source.without_caption),
        ("captions without an image", source.without_image),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{what}: {shown}", file=sys.stderr)


def open_clean(
    config: LatentConfig, source: PairSet, pairs: ContaminatedPairs, out: Path
) -> PairSet | None:
    """--reference; else the data before contamination; None if they were not contaminated."""
    if config.reference is not None:
        return open_reference(
            config.reference,
            config.caption_column,
            max_bad_fraction=config.max_bad_fraction,
            offline=config.offline,
            scan_cache=cache_file(config, out, "images.json"),
        )
    return source if pairs.corruptions else None


def cache_folder(config: LatentConfig, out: Path) -> Path | None:
    """None if the run has no cache."""
    return (config.cache_dir or out / "cache") if config.cache else None


def cache_file(config: LatentConfig, out: Path, name: str) -> Path | None:
    folder = cache_folder(config, out)
    return None if folder is None else folder / name


def select_images(
    pairs: ContaminatedPairs, image: Callable[[int], Tensor], limit: int = REFERENCE
) -> Tensor:
    """=>  (N, 3, side, side): at most `limit` evenly spaced images, fewer if they take much memory.

    image: `pairs.sample` or `pairs.clean`, of pairs that are squares."""
    height, width = pairs.bucket_sizes[0]
    affordable = max(64, SMALL // (12 * height * width))
    return torch.stack([image(i) for i in evenly_spaced(len(pairs), min(limit, affordable))])


def contaminated_pairs(
    config: LatentConfig,
    components: Components,
    pairs: PairSet,
    specs: str,
    *,
    buckets: bool | None = None,
    trusted: Sequence[int] = (),
) -> ContaminatedPairs:
    """The pairs at the run's resolution, contaminated by `specs` with its seed. The corruption
    encoder-poison attacks the run's model. buckets: None for the run's setting, False for
    squares. trusted: indices of pairs that are spared."""
    sides = {} if (config.buckets if buckets is None else buckets) else {"max_ratio": 1.0}
    return ContaminatedPairs(
        pairs,
        parse_contamination(specs),
        config.seed,
        make_buckets(config.resolution, components.family.multiple, **sides),
        # The pairs live longer than the network, and hold the VAE only if they need it.
        encode=_vae_alone(components).encode_means if "encoder-poison" in specs else None,
        offline=config.offline,
        trusted=trusted,
    )


def of_one_size(
    pairs: ContaminatedPairs, image: Callable[[int], Tensor], count: int | None = None
) -> Tensor:
    """=>  (N, 3, h, w): evenly spaced images of the bucket with the most pairs.

    image: `pairs.sample` or `pairs.clean`; count: by default as many as a spectrum needs."""
    members = list(dict.fromkeys(max(pairs.buckets(), key=len)))
    height, width = pairs.bucket(members[0])
    if count is None:
        enough = max(MIN_SPECTRUM_IMAGES, SPECTRUM_PIXELS // (height * width))
        count = min(MAX_SPECTRUM_IMAGES, enough)
    return torch.stack([image(members[i]) for i in evenly_spaced(len(members), count)])


def to_measure(pairs: ContaminatedPairs) -> tuple[Tensor, Tensor | None]:
    """=>  samples and what noise a reduction left in them, as `measure_spectrum` takes both."""
    members = list(dict.fromkeys(max(pairs.buckets(), key=len)))
    chosen = [members[i] for i in evenly_spaced(len(members), ORIGINALS)]
    bucket = pairs.bucket(chosen[0])
    left = reduced_noise(map(pairs.original, chosen), lambda image: fit_bucket(image, bucket))
    return of_one_size(pairs, pairs.sample), left


class MeasuredNoise(NamedTuple):
    """Root mean square of the white noise in pairs: in the images, in units of [-1, 1], and in
    their latents."""

    images: float
    latents: float


def measure_noise(components: Components, pairs: ContaminatedPairs) -> MeasuredNoise:
    """As the spectrum of the images shows it. The VAE must be loaded."""
    level = measure_spectrum(*to_measure(pairs)).level
    gain = noise_gain(components, pairs, max(level, CLEAN))
    return MeasuredNoise(level, level * float(gain.square().mean().sqrt()))


def noise_gain(components: Components, pairs: ContaminatedPairs, level: float) -> Tensor:
    """By how much the encoder multiplies noise of this level, (C,)."""
    return encoder_gain(of_one_size(pairs, pairs.clean, GAIN_IMAGES), level, components)


def _vae_alone(components: Components) -> Components:
    return components.without(components.family.network_name, *components.text_encoders)
