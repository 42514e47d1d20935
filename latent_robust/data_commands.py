"""The commands that look at data before anything is trained: `latent-robust contaminate` and
`recommend`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, refuse_options
from .files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from .core import Weighting
    from .data import PairSet, PictureSet
    from .data.corruption import Corruption
    from .data.spectrum import Recommendation

PAIRS_HELP = (
    "a folder with metadata.jsonl, .csv, .parquet or .txt, .caption files beside its pictures, "
    "parquet:FILE, wds:SHARDS, or hf:NAME[:SPLIT]"
)
DATA_HELP = "digits, fashion-mnist:DIR, parquet:FILE, a folder of pictures, or hf:NAME[:SPLIT]"

CHANNELS = 3
BAD_FRACTION = 0.05  # as in training


def add_data_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """command: (name, what it does, help) => the parser of a new command."""
    contaminate = command("contaminate", _contaminate, "make a dirty copy of pictures")
    contaminate.add_argument(
        "--data", required=True, help=f"{DATA_HELP}; with --pairs: {PAIRS_HELP}"
    )
    contaminate.add_argument(
        "--contamination", required=True, help="e.g. 'gaussian:fraction=0.9,sigma=0.2'"
    )
    contaminate.add_argument("--out", type=Path, required=True, help="a new or empty directory")
    contaminate.add_argument("--size", type=int, help="pixels a side, for pictures")
    contaminate.add_argument(
        "--channels", type=int, choices=(1, 3), help="of pictures (default: 3)"
    )
    contaminate.add_argument("--limit", type=int, help="only the first N pictures")
    add_max_bad_fraction(contaminate)
    contaminate.add_argument("--seed", type=int, default=0)
    contaminate.add_argument("--offline", action="store_true")
    pairs = _add_pairs(contaminate)
    pairs.add_argument("--buckets", action="store_true", help="keep the pictures' shapes, nearly")
    pairs.add_argument("--model", help="whose encoder encoder-poison attacks: a path or hub name")

    recommend = command(
        "recommend", _recommend, "a weight and a band for pictures, before training"
    )
    recommend.add_argument("--data", required=True, help=f"{DATA_HELP}; with --pairs: {PAIRS_HELP}")
    recommend.add_argument("--size", type=int, help="pixels a side, as trained on, for pictures")
    recommend.add_argument("--channels", type=int, choices=(1, 3), help="of pictures (default: 3)")
    recommend.add_argument("--limit", type=int, help="only the first N pictures")
    add_max_bad_fraction(recommend)
    recommend.add_argument(
        "--objective",
        choices=("robust-adversarial", "robust-random"),
        help="default: robust-adversarial, of pairs robust-random, as in training",
    )
    recommend.add_argument(
        "--attack",
        choices=("displacement", "gradient"),
        default="displacement",
        help="of robust-adversarial (default: displacement)",
    )
    recommend.add_argument(
        "--parameterization",
        choices=("epsilon", "v_prediction", "sample", "flow"),
        help="what the network predicts (default: epsilon; of pairs the model's)",
    )
    recommend.add_argument(
        "--try",
        dest="tried",
        type=_weighting,
        action="append",
        default=[],
        metavar="WEIGHT,BAND",
        help="forecast these, too; may be repeated; of pairs also a band for each channel",
    )
    recommend.add_argument("--contamination", default="none", help="of an experiment")
    recommend.add_argument("--seed", type=int, default=0, help="of the contamination")
    recommend.add_argument("--out", type=Path, help="also write a JSON file")
    recommend.add_argument("--offline", action="store_true")
    pairs = _add_pairs(recommend)
    pairs.add_argument("--model", help="in whose latents: a path, a hub name, or demo")


def _add_pairs(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    pairs = parser.add_argument_group("pairs of pictures and captions")
    pairs.add_argument("--pairs", action="store_true", help="the data are pairs")
    pairs.add_argument("--resolution", type=int, help="pixels a side, or root of a bucket's area")
    pairs.add_argument("--caption-column", help="default: text, caption, ...")
    return pairs


def add_max_bad_fraction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=BAD_FRACTION,
        help="share of broken pictures that is tolerated (default: %(default)s)",
    )


def _contaminate(options: argparse.Namespace) -> int:
    from .data import contaminate_folder, parse_contamination

    corruptions = parse_contamination(options.contamination)
    if options.pairs:
        return _contaminate_pairs(options, corruptions)
    if options.size is None:
        raise InputError("contaminate needs --size, or --pairs and --resolution")
    of_pairs = ("resolution", "buckets", "caption_column", "model")
    refuse_options(options, of_pairs, "is for pairs: add --pairs, or leave it")
    pictures = _open(options)
    contaminate_folder(pictures, corruptions, options.seed, options.out)
    print(f"{len(pictures)} pictures and their manifest are in {options.out}")
    _name_left_out(pictures.quarantine)
    return 0


def _open(options: argparse.Namespace) -> PictureSet:
    from .data import open_pictures

    return open_pictures(
        options.data,
        size=options.size,
        channels=options.channels or CHANNELS,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )


def _open_pairs(options: argparse.Namespace) -> PairSet:
    from .data import open_pairs

    return open_pairs(
        options.data,
        caption_column=options.caption_column,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )


def _contaminate_pairs(options: argparse.Namespace, corruptions: list[Corruption]) -> int:
    from .data import ContaminatedPairs, contaminate_pairs, make_buckets

    if options.resolution is None:
        raise InputError("contaminate --pairs needs --resolution")
    refuse_options(options, ("size", "channels"), "is for pictures: leave it, or --pairs")
    buckets = make_buckets(options.resolution, max_ratio=2.0 if options.buckets else 1.0)
    pairs = _open_pairs(options)
    encode = None
    if options.model is not None:
        from .latent.components import load_components

        encode = load_components(options.model, offline=options.offline).encode_means
    samples = ContaminatedPairs(
        pairs, corruptions, options.seed, buckets, encode, offline=options.offline
    )
    contaminate_pairs(samples, options.out)
    print(f"{pairs.summary()}; contaminated with their manifest in {options.out}")
    _name_left_out(pairs.quarantine)
    for name in pairs.without_picture:
        print(f"left out: {name}: its picture does not exist")
    return 0


def _name_left_out(quarantine: list[dict]) -> None:
    for row in quarantine:
        print(f"left out: {row['name']}: {row['reason']}")


def _weighting(text: str) -> Weighting:
    from .core import Weighting

    try:
        weight, *bands = (float(part) for part in text.split(","))
        return Weighting("band", weight, bands)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs WEIGHT,BAND, e.g. 3,0.5: {error}") from None


def _recommend(options: argparse.Namespace) -> int:
    from .data import parse_contamination

    corruptions = parse_contamination(options.contamination)
    options.objective = (
        options.objective or f"robust-{'random' if options.pairs else 'adversarial'}"
    )
    find = _recommend_pairs if options.pairs else _recommend_pictures
    found, kind, train = find(options, corruptions)
    print(found.summary())
    by_channel = found.spectrum.by_channel
    channels = 1 if by_channel is None else len(by_channel)
    for weighting in options.tried:
        if len(weighting.bands) not in (1, channels):
            raise InputError(f"--try: {len(weighting.bands)} bands, where one or {channels} can be")
        print(f"{weighting}: forecast {found.spectrum.distance(weighting, *kind):.3g}")
    if found.weighting is not None:
        told = [*train, "--data", options.data]
        as_usual = {
            "contamination": "none",
            "limit": None,
            "seed": 0,
            "caption_column": None,
            "max_bad_fraction": BAD_FRACTION,
        }
        for name, usual in as_usual.items():
            if (value := getattr(options, name)) != usual:
                told += [f"--{name.replace('_', '-')}", str(value)]
        told += ["--objective", options.objective]
        if options.objective == "robust-adversarial" and options.attack != "displacement":
            told += ["--attack", options.attack]
        bands = [f"{band:g}" for band in found.weighting.bands]
        band = bands[0] if len(bands) == 1 else f"[{','.join(bands)}]"
        told += ["--weight", f"{found.weighting.weight:g}", "--band", band]
        print(f"\n{shlex.join(told)}")
    if options.out is not None:
        write_json(options.out, found.facts())
    return 0


def _recommend_pictures(
    options: argparse.Namespace, corruptions: list[Corruption]
) -> tuple[Recommendation, tuple[str, str], list[str]]:
    """=>  what was found; attack and parameterization; the beginning of a command that uses it."""
    from .data import ContaminatedPictures, pictures_to_look_at, recommend

    if options.size is None:
        raise InputError("recommend needs --size, or --pairs, --resolution and --model")
    of_pairs = ("resolution", "caption_column", "model")
    refuse_options(options, of_pairs, "is for pairs: add --pairs, or leave it")
    dirty = ContaminatedPictures(_open(options), corruptions, options.seed)
    channels = options.channels or CHANNELS
    samples = dirty.sample_tensor(limit=pictures_to_look_at(options.size, channels))
    _say_how_many(samples, dirty, options.data)
    kind = (_attack(options), options.parameterization or "epsilon")
    train = ["train-pixel", "--size", str(options.size), "--channels", str(channels)]
    if kind[1] != "epsilon":
        train += ["--parameterization", kind[1]]
    return recommend(samples, *kind), kind, train


def _recommend_pairs(
    options: argparse.Namespace, corruptions: list[Corruption]
) -> tuple[Recommendation, tuple[str, str], list[str]]:
    """As `_recommend_pictures`, in a model's latents."""
    from .data import ContaminatedPairs, make_buckets
    from .latent.components import load_components
    from .latent.preparation import of_one_size
    from .latent.spectrum import recommend_latents

    if options.resolution is None or options.model is None:
        raise InputError("recommend --pairs needs --resolution and --model")
    of_pictures = ("size", "channels", "parameterization")
    refuse_options(options, of_pictures, "is for pictures: leave it, or --pairs")
    components = load_components(options.model, offline=options.offline)
    buckets = make_buckets(options.resolution, components.family.multiple, max_ratio=1.0)
    dirty = ContaminatedPairs(
        _open_pairs(options),
        corruptions,
        options.seed,
        buckets,
        components.encode_means,
        offline=options.offline,
    )
    samples = of_one_size(dirty, dirty.sample)
    _say_how_many(samples, dirty, options.data)
    kind = (_attack(options), components.process.parameterization.value)
    train = ["finetune-latent", "--lora", "--model", options.model]
    train += ["--resolution", str(options.resolution)]
    return recommend_latents(samples, components, kind[0]), kind, train


def _attack(options: argparse.Namespace) -> str:
    return "random" if options.objective == "robust-random" else options.attack


def _say_how_many(samples: Tensor, everything: Sized, data: str) -> None:
    if len(samples) < 2:
        raise InputError(f"{data} has one picture; a spectrum takes some dozens at least")
    print(f"{len(samples):,} of {len(everything):,} pictures")
