"""Options that several commands share, and the checks on them that need no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust import __version__
from latent_robust.data.sources.spec import IMAGE_FORMS, PAIR_FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

if TYPE_CHECKING:
    from latent_robust.data import ImageSet, PairSet

IMAGES_HELP = f"a folder of images, {', '.join(IMAGE_FORMS.values())}"
PAIRS_HELP = f"a folder of captioned images, {', '.join(PAIR_FORMS.values())}"
CHANNELS = 3  # of images, unless --channels is given
DEVICES = ("auto", "cpu", "cuda", "mps")

# Titles of the groups in --help, in the order of their importance.
NEED = "what you need"
SAMPLING = "how to sample"
PAIRS = "pairs of images and captions"
DETAILS = "details"
MORE = "more"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The same width as the help of train-pixel and finetune-latent."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)


# ---------------------------------------------------------------------- types of values


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"needs a whole number >= 1, got {text!r}")
    return int(text)


def numbers(text: str) -> list[float]:
    """ "0.5,1,2"  =>  [0.5, 1, 2]."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 0:
        raise argparse.ArgumentTypeError(f"needs numbers >= 0, e.g. 0.5,1,2, got {text!r}")
    return values


# ---------------------------------------------------------------------- groups of options


def add_common(parser: argparse.ArgumentParser, *, seed: bool = True, device: bool = True) -> None:
    """The options of (nearly) every command, in the last group of its help."""
    more = parser.add_argument_group(MORE)
    if seed:
        more.add_argument(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="seed of all random numbers (default: 0)",
        )
    if device:
        more.add_argument(
            "--device",
            choices=DEVICES,
            default=DEVICES[0],
            metavar="NAME",
            help=f"where to compute: {', '.join(DEVICES)} (default: auto)",
        )
    more.add_argument("--offline", action="store_true", help="never use the network")
    add_help_and_version(more)


def add_help_and_version(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument(
        "--version",
        action="version",
        version=f"latent-robust {__version__}",
        help="show the version and exit",
    )


def add_channels(group: argparse._ArgumentGroup, what: str) -> None:
    """what: that the option is for."""
    group.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        metavar="N",
        help=f"{what}: 1 for gray, 3 for RGB (default: {CHANNELS})",
    )


def add_max_bad_fraction(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-bad-fraction",
        type=float,
        default=MAX_BAD_FRACTION,
        metavar="X",
        help="stop if more than this share of the files is unreadable (default: %(default)s)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(SAMPLING)
    group.add_argument(
        "--steps", type=positive, metavar="N", help="denoising steps per image (default: the run's)"
    )
    add_sampler(group, "pixel runs: ")
    group.add_argument(
        "--stop-at",
        type=float,
        metavar="X",
        help="pixel runs: stop sampling at this noise level and return the estimate of the clean "
        "image there (default: the run's)",
    )
    return group


def add_sampler(group: argparse._ArgumentGroup, runs: str = "") -> None:
    """runs: which runs take the option, for its help."""
    group.add_argument(
        "--sampler",
        choices=("ddim", "ddpm"),
        metavar="NAME",
        help=f"{runs}ddim (deterministic) or ddpm (ancestral) (default: the run's)",
    )


def add_features(group: argparse._ArgumentGroup, default: str) -> None:
    group.add_argument(
        "--features",
        metavar="NAME,...",
        help="feature spaces in which distances are measured, e.g. pixels,inception "
        f"(default: {default})",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="file with the weights of the Inception features (default: downloaded)",
    )


def add_dataset(
    parser: argparse.ArgumentParser, need: argparse._ArgumentGroup
) -> tuple[argparse._ArgumentGroup, argparse._ArgumentGroup]:
    """The dataset of `contaminate` and `recommend`: images, or with --pairs captioned images.

    need: the group of what the command cannot do without.  =>  the groups for pairs and details."""
    need.add_argument(
        "--data", required=True, metavar="DATA", help=f"{IMAGES_HELP}; with --pairs: {PAIRS_HELP}"
    )
    need.add_argument(
        "--size", type=int, metavar="N", help="crop and resize images to N x N pixels"
    )
    pairs = parser.add_argument_group(PAIRS)
    pairs.add_argument("--pairs", action="store_true", help="the data are images with captions")
    pairs.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="crop and resize images to N x N pixels; in place of --size",
    )
    pairs.add_argument(
        "--caption-column",
        metavar="NAME",
        help="column of the captions in tables and metadata files (default: text, caption, "
        "prompt, ...)",
    )
    details = parser.add_argument_group(DETAILS)
    add_channels(details, "images")
    details.add_argument("--limit", type=int, metavar="N", help="use only the first N images")
    add_max_bad_fraction(details)
    return pairs, details


# ---------------------------------------------------------------------- checks


def check_dataset(options: argparse.Namespace, *, pair_options: Iterable[str]) -> None:
    """Raises InputError for data that do not exist, and for options of the other kind of data."""
    if options.pairs:
        refuse_options(options, ("size", "channels"), "is for images: leave it out, or --pairs")
        parse_spec(options.data, PAIR_FORMS)
    else:
        refuse_options(options, pair_options, "is for pairs: add --pairs, or leave it out")
        parse_spec(options.data, IMAGE_FORMS)
    if options.model is not None:
        from latent_robust.latent.base.model_spec import model_kind

        model_kind(options.model)


def refuse_options(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises InputError, "--NAME " + why, for the first of `names` that was given. `options` need
    not have all of them."""
    for name in names:
        value = getattr(options, name, None)
        if value is not None and value is not False:
            raise InputError(f"--{name.replace('_', '-')} {why}")


def open_dataset_images(options: argparse.Namespace) -> ImageSet:
    """The images of `add_dataset`'s options."""
    from latent_robust.data import open_images

    return open_images(
        options.data,
        size=options.size,
        channels=options.channels or CHANNELS,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )


def open_dataset_pairs(options: argparse.Namespace) -> PairSet:
    """The pairs of `add_dataset`'s options, with --pairs."""
    from latent_robust.data import open_pairs

    return open_pairs(
        options.data,
        caption_column=options.caption_column,
        limit=options.limit,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )


def print_quarantine(quarantine: Sequence[dict]) -> None:
    for row in quarantine:
        print(f"left out: {row['name']}: {row['reason']}")
