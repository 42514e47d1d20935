"""`latent-robust recommend`: measure the noise of images, and choose weight and band for them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.core.registry import ADVERSARIAL, OBJECTIVES
from latent_robust.errors import InputError
from latent_robust.files import write_json
from latent_robust.limits import MAX_BAD_FRACTION

from .options import (
    CHANNELS,
    NEED,
    add_common,
    add_dataset,
    check_dataset,
    open_dataset_images,
    open_dataset_pairs,
    print_quarantine,
)

if TYPE_CHECKING:
    from torch import Tensor

    from latent_robust.audit.spectrum import Recommendation
    from latent_robust.core import Weighting
    from latent_robust.data import ContaminatedImages, ContaminatedPairs
    from latent_robust.data.contamination.corruption import Corruption

SUMMARY = "measure the noise of your images and choose weight and band of the regularizer"
USAGE = "--data DATA --size N [options]"
EXAMPLES = """\
examples:
  latent-robust recommend --data DIR --size 64
  latent-robust recommend --data DIR --pairs --resolution 512 --model MODEL
"""
PARAMETERIZATIONS = ("epsilon", "v_prediction", "sample", "flow")
# Options that the printed command leaves out if they have these values.
DEFAULTS = {
    "contamination": "none",
    "limit": None,
    "seed": 0,
    "caption_column": None,
    "max_bad_fraction": MAX_BAD_FRACTION,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    pairs, details = add_dataset(parser, need)
    choices = [
        name for name, facts in OBJECTIVES.items() if facts.regularized and facts.equivariant
    ]
    need.add_argument(
        "--objective",
        choices=choices,
        metavar="NAME",
        help=f"objective to train with: {', '.join(choices)} (default: robust-adversarial; for "
        "pairs robust-random)",
    )
    pairs.add_argument(
        "--model",
        metavar="MODEL",
        help="model that you will fine-tune: a diffusers folder, a .safetensors file, a Hub "
        "name, or demo",
    )
    details.add_argument(
        "--attack",
        choices=ADVERSARIAL,
        default=ADVERSARIAL[0],
        metavar="NAME",
        help=f"attack of robust-adversarial: {', '.join(ADVERSARIAL)} (default: %(default)s)",
    )
    details.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        metavar="NAME",
        help=f"what the network predicts: {', '.join(PARAMETERIZATIONS)} (default: epsilon; for "
        "pairs the model's)",
    )
    details.add_argument(
        "--try",
        dest="extra_weightings",
        type=_weighting,
        action="append",
        default=[],
        metavar="WEIGHT,BAND",
        help="also forecast this setting; pairs may have one band per latent channel; may be "
        "repeated",
    )
    details.add_argument(
        "--contamination",
        default="none",
        metavar="SPEC",
        help="contaminate the images first, for experiments (default: none)",
    )
    details.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the result to this JSON file"
    )
    add_common(parser, device=False)


def check(options: argparse.Namespace) -> None:
    check_dataset(options, pair_options=("resolution", "caption_column", "model"))
    if options.pairs and (options.resolution is None or options.model is None):
        raise InputError("recommend --pairs needs --resolution and --model")
    if options.pairs and options.parameterization is not None:
        raise InputError(
            "--parameterization is for images; pairs have that of the model: leave it out"
        )
    if not options.pairs and options.size is None:
        raise InputError("recommend needs --size, or --pairs, --resolution and --model")
    if options.objective is None:
        options.objective = f"robust-{'random' if options.pairs else 'adversarial'}"


def run(options: argparse.Namespace) -> int:
    from latent_robust.data import parse_contamination

    corruptions = parse_contamination(options.contamination)
    recommend = _recommend_pairs if options.pairs else _recommend_images
    result, kind, command = recommend(options, corruptions)
    print(result.summary())
    by_channel = result.spectrum.by_channel
    channels = 1 if by_channel is None else len(by_channel)
    for weighting in options.extra_weightings:
        if len(weighting.bands) not in (1, channels):
            raise InputError(f"--try has {len(weighting.bands)} bands; give one or {channels}")
        print(f"{weighting}: forecast {result.spectrum.distance(weighting, *kind):.3g}")
    print(f"What else is wrong with them: latent-robust audit {shlex.quote(options.data)}")
    if result.weighting is not None:
        print(f"\nTrain with:\n{shlex.join([*command, *_settings(options, result.weighting)])}")
    if options.out is not None:
        write_json(options.out, result.facts())
    return 0


def _settings(options: argparse.Namespace, weighting: Weighting) -> list[str]:
    """The remaining options of the training command: data, objective, weight and band."""
    args = ["--data", options.data]
    for name, default in DEFAULTS.items():
        if (value := getattr(options, name)) != default:
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
    """=>  the recommendation; attack and parameterization; the start of a training command."""
    from latent_robust.audit import recommend, to_measure
    from latent_robust.data import ContaminatedImages

    channels = options.channels or CHANNELS
    images = open_dataset_images(options)
    dirty = ContaminatedImages(images, corruptions, options.seed)
    samples, left = to_measure(dirty)
    _print_count(samples, dirty, options.data)
    kind = (_attack(options), options.parameterization or PARAMETERIZATIONS[0])
    command = ["train-pixel", "--size", str(options.size), "--channels", str(channels)]
    if kind[1] != PARAMETERIZATIONS[0]:
        command += ["--parameterization", kind[1]]
    return recommend(samples, *kind, left=left), kind, command


def _recommend_pairs(
    options: argparse.Namespace, corruptions: Sequence[Corruption]
) -> tuple[Recommendation, tuple[str, str], list[str]]:
    """As `_recommend_images`, in the latents of a model."""
    from latent_robust.data import ContaminatedPairs, make_buckets
    from latent_robust.latent.base.components import load_components
    from latent_robust.latent.data import to_measure
    from latent_robust.latent.spectrum import recommend_latents

    components = load_components(options.model, offline=options.offline)
    buckets = make_buckets(options.resolution, components.family.multiple, max_ratio=1.0)
    pairs = open_dataset_pairs(options)
    dirty = ContaminatedPairs(
        pairs,
        corruptions,
        options.seed,
        buckets,
        components.encode_means,
        offline=options.offline,
    )
    samples, left = to_measure(dirty)
    _print_count(samples, dirty, options.data)
    kind = (_attack(options), components.process.parameterization.value)
    command = ["finetune-latent", "--lora", "--model", options.model]
    command += ["--resolution", str(options.resolution)]
    return recommend_latents(samples, components, kind[0], left=left), kind, command


def _attack(options: argparse.Namespace) -> str:
    """The perturbation that the objective trains with."""
    return "random" if OBJECTIVES[options.objective].random else options.attack


def _weighting(text: str) -> Weighting:
    """ "3,0.5"  =>  weight 3, band 0.5."""
    from latent_robust.core import Weighting

    try:
        weight, *bands = (float(part) for part in text.split(","))
        return Weighting("band", weight, bands)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs WEIGHT,BAND, e.g. 3,0.5: {error}") from None


def _print_count(
    samples: Tensor, dataset: ContaminatedImages | ContaminatedPairs, data: str
) -> None:
    if len(samples) < 2:
        raise InputError(f"{data} has only one image; measuring noise needs at least some dozens")
    print(f"measured {len(samples):,} of {len(dataset):,} images")
    print_quarantine(dataset.quarantine)
