"""`latent-robust recommend`: how noisy are these images, and which weight and band suit them?"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.core.registry import ADVERSARIAL, OBJECTIVES
from latent_robust.errors import InputError
from latent_robust.files import write_json
from latent_robust.limits import MAX_BAD_FRACTION

from .options import CHANNELS, add_common, add_dataset, check_dataset

if TYPE_CHECKING:
    from torch import Tensor

    from latent_robust.audit.spectrum import Recommendation
    from latent_robust.core import Weighting
    from latent_robust.data.contamination.corruption import Corruption

PARAMETERIZATIONS = ("epsilon", "v_prediction", "sample", "flow")
# The value of an option that need not be repeated in the command that is printed.
USUAL = {
    "contamination": "none",
    "limit": None,
    "seed": 0,
    "caption_column": None,
    "max_bad_fraction": MAX_BAD_FRACTION,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    pairs = add_dataset(parser)
    choices = [
        name for name, facts in OBJECTIVES.items() if facts.regularized and facts.equivariant
    ]
    parser.add_argument(
        "--objective",
        choices=choices,
        help="default: robust-adversarial; for pairs robust-random, as in training",
    )
    parser.add_argument(
        "--attack",
        choices=ADVERSARIAL,
        default=ADVERSARIAL[0],
        help="for robust-adversarial (default: %(default)s)",
    )
    parser.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        help="what the network predicts (default: epsilon; for pairs the model's)",
    )
    parser.add_argument(
        "--try",
        dest="tried",
        type=_weighting,
        action="append",
        default=[],
        metavar="WEIGHT,BAND",
        help="also forecast this setting; may be repeated; for pairs a band for each channel",
    )
    parser.add_argument("--contamination", default="none", metavar="SPEC", help="for experiments")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write a JSON file")
    add_common(parser, device=False)
    pairs.add_argument(
        "--model", metavar="MODEL", help="in whose latents: a path, a Hub name, or demo"
    )


def check(options: argparse.Namespace) -> None:
    check_dataset(options, pair_options=("resolution", "caption_column", "model"))
    if options.pairs and (options.resolution is None or options.model is None):
        raise InputError("recommend --pairs needs --resolution and --model")
    if options.pairs and options.parameterization is not None:
        raise InputError("--parameterization is for images: that of pairs is the model's")
    if not options.pairs and options.size is None:
        raise InputError("recommend needs --size, or --pairs, --resolution and --model")
    if options.objective is None:
        options.objective = f"robust-{'random' if options.pairs else 'adversarial'}"


def run(options: argparse.Namespace) -> int:
    from latent_robust.data import parse_contamination

    corruptions = parse_contamination(options.contamination)
    find = _recommend_pairs if options.pairs else _recommend_images
    result, kind, command = find(options, corruptions)
    print(result.summary())
    by_channel = result.spectrum.by_channel
    channels = 1 if by_channel is None else len(by_channel)
    for weighting in options.tried:
        if len(weighting.bands) not in (1, channels):
            raise InputError(f"--try: {len(weighting.bands)} bands; give one or {channels}")
        print(f"{weighting}: forecast {result.spectrum.distance(weighting, *kind):.3g}")
    if result.weighting is not None:
        print(f"\n{shlex.join([*command, *_settings(options, result.weighting)])}")
    if options.out is not None:
        write_json(options.out, result.facts())
    return 0


def _settings(options: argparse.Namespace, weighting: Weighting) -> list[str]:
    """The options of a training command that has what was found."""
    args = ["--data", options.data]
    for name, usual in USUAL.items():
        if (value := getattr(options, name)) != usual:
            args += [f"--{name.replace('_', '-')}", str(value)]
    args += ["--objective", options.objective]
    if not OBJECTIVES[options.objective].random and options.attack != ADVERSARIAL[0]:
        args += ["--attack", options.attack]
    bands = [f"{band:g}" for band in weighting.bands]
    band = bands[0] if len(bands) == 1 else f"[{','.join(bands)}]"
    return [*args, "--weight", f"{weighting.weight:g}", "--band", band]


def _recommend_images(
    options: argparse.Namespace, corruptions: Sequence[Corruption]
) -> tuple[Recommendation, tuple[str, str], list[str]]:
    """=>  the recommendation; attack and parameterization; the beginning of a training command."""
    from latent_robust.audit import images_to_measure, recommend
    from latent_robust.data import ContaminatedImages, open_images

    channels = options.channels or CHANNELS
    images = open_images(
        options.data,
        size=options.size,
        channels=channels,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )
    dirty = ContaminatedImages(images, corruptions, options.seed)
    samples = dirty.sample_tensor(limit=images_to_measure(options.size, channels))
    _say_how_many(samples, dirty, options.data)
    kind = (_attack(options), options.parameterization or PARAMETERIZATIONS[0])
    command = ["train-pixel", "--size", str(options.size), "--channels", str(channels)]
    if kind[1] != PARAMETERIZATIONS[0]:
        command += ["--parameterization", kind[1]]
    return recommend(samples, *kind), kind, command


def _recommend_pairs(
    options: argparse.Namespace, corruptions: Sequence[Corruption]
) -> tuple[Recommendation, tuple[str, str], list[str]]:
    """As `_recommend_images`, in a model's latents."""
    from latent_robust.data import ContaminatedPairs, make_buckets, open_pairs
    from latent_robust.latent.base.components import load_components
    from latent_robust.latent.preparation import of_one_size
    from latent_robust.latent.spectrum import recommend_latents

    components = load_components(options.model, offline=options.offline)
    buckets = make_buckets(options.resolution, components.family.multiple, max_ratio=1.0)
    pairs = open_pairs(
        options.data,
        caption_column=options.caption_column,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )
    dirty = ContaminatedPairs(
        pairs,
        corruptions,
        options.seed,
        buckets,
        components.encode_means,
        offline=options.offline,
    )
    samples = of_one_size(dirty, dirty.sample)
    _say_how_many(samples, dirty, options.data)
    kind = (_attack(options), components.process.parameterization.value)
    command = ["finetune-latent", "--lora", "--model", options.model]
    command += ["--resolution", str(options.resolution)]
    return recommend_latents(samples, components, kind[0]), kind, command


def _attack(options: argparse.Namespace) -> str:
    return "random" if OBJECTIVES[options.objective].random else options.attack


def _weighting(text: str) -> Weighting:
    from latent_robust.core import Weighting

    try:
        weight, *bands = (float(part) for part in text.split(","))
        return Weighting("band", weight, bands)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs WEIGHT,BAND, e.g. 3,0.5: {error}") from None


def _say_how_many(samples: Tensor, everything: Sized, data: str) -> None:
    if len(samples) < 2:
        raise InputError(f"{data} has one image; a spectrum takes some dozens at least")
    print(f"{len(samples):,} of {len(everything):,} images")
