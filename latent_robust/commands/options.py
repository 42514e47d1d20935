"""Options that several commands share, and refusing those that do not apply."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from latent_robust.data.sources.spec import IMAGE_FORMS, PAIR_FORMS
from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

IMAGES_HELP = f"a folder of images, {', '.join(IMAGE_FORMS.values())}"
PAIRS_HELP = f"a folder of captioned images, {', '.join(PAIR_FORMS.values())}"
CHANNELS = 3  # of images, if nothing else is said


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"needs a whole number >= 1, got {text!r}")
    return int(text)


def numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"needs numbers >= 0, e.g. 0.5,1,2, got {text!r}")
    return found


def add_common(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    if device:
        parser.add_argument(
            "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto"
        )
    parser.add_argument("--offline", action="store_true", help="never use the network")


def add_max_bad_fraction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=MAX_BAD_FRACTION,
        metavar="X",
        help="stop if more than this share of the files cannot be used (default: %(default)s)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="sampling steps (default: the run's)"
    )
    parser.add_argument(
        "--sampler",
        choices=("ddim", "ddpm"),
        help="pixel runs: deterministic or ancestral (default: the run's)",
    )
    parser.add_argument(
        "--stop-at",
        type=float,
        metavar="X",
        help="pixel runs: end the sampler at this noise level, with its clean estimate there "
        "(default: the run's)",
    )


def add_features(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--features", metavar="NAME,...", help=f"feature spaces (default: {default})"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights file of the Inception features"
    )


def add_dataset(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What `contaminate` and `recommend` ask of images, or of pairs with --pairs.  =>  the group of
    the options for pairs."""
    parser.add_argument(
        "--data", required=True, metavar="DATA", help=f"{IMAGES_HELP}; with --pairs: {PAIRS_HELP}"
    )
    parser.add_argument("--size", type=int, metavar="N", help="images: pixels a side")
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help=f"images: gray or RGB (default: {CHANNELS})"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N images")
    add_max_bad_fraction(parser)
    pairs = parser.add_argument_group("pairs of images and captions")
    pairs.add_argument("--pairs", action="store_true", help="the data are pairs")
    pairs.add_argument(
        "--resolution", type=int, metavar="N", help="pixels a side, or root of a bucket's area"
    )
    pairs.add_argument(
        "--caption-column", metavar="NAME", help="default: text, caption, prompt, ..."
    )
    return pairs


def check_dataset(options: argparse.Namespace, *, pair_options: Iterable[str]) -> None:
    """Raises InputError for options that are not for this kind of data, and for data that does not
    exist."""
    from latent_robust.data.sources.spec import parse_spec

    if options.pairs:
        refuse_options(options, ("size", "channels"), "is for images: leave it out, or --pairs")
        parse_spec(options.data, PAIR_FORMS)
    else:
        refuse_options(options, pair_options, "is for pairs: add --pairs, or leave it out")
        parse_spec(options.data, IMAGE_FORMS)


def refuse_options(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises InputError, "--an-option " + why, for the first of `names` that was given; `options`
    need not have them."""
    for name in names:
        value = getattr(options, name, None)
        if value is not None and value is not False:
            raise InputError(f"--{name.replace('_', '-')} {why}")
