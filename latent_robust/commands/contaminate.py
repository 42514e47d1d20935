"""`latent-robust contaminate`: write a contaminated copy of images or of image-caption pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_robust.errors import InputError

from .options import (
    NEED,
    add_common,
    add_dataset,
    check_dataset,
    open_dataset_images,
    open_dataset_pairs,
    print_quarantine,
)

if TYPE_CHECKING:
    from latent_robust.data.contamination.corruption import Corruption

SUMMARY = "write a contaminated copy of images or of image-caption pairs"
USAGE = "--data DATA --contamination SPEC --out DIR [options]"
EXAMPLES = """\
examples:
  latent-robust contaminate --data DIR --size 32 --contamination gaussian:fraction=0.9,sigma=0.2 \\
      --out dirty
  latent-robust contaminate --data DIR --pairs --resolution 512 --buckets \\
      --contamination "caption-shuffle:fraction=0.2; jpeg:fraction=0.5,quality=20" --out dirty
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group(NEED)
    pairs, _ = add_dataset(parser, need)
    need.add_argument(
        "--contamination",
        required=True,
        metavar="SPEC",
        help="corruptions to apply, e.g. 'gaussian:fraction=0.9,sigma=0.2; jpeg:fraction=0.3,"
        "quality=20'",
    )
    need.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new or empty directory"
    )
    pairs.add_argument(
        "--buckets",
        action="store_true",
        help="keep aspect ratios: use sizes with the area of N x N pixels",
    )
    pairs.add_argument(
        "--model", metavar="MODEL", help="model whose image encoder encoder-poison attacks"
    )
    add_common(parser, device=False)


def check(options: argparse.Namespace) -> None:
    check_dataset(options, pair_options=("resolution", "buckets", "caption_column", "model"))
    if options.pairs and options.resolution is None:
        raise InputError("contaminate --pairs needs --resolution")
    if not options.pairs and options.size is None:
        raise InputError("contaminate needs --size, or --pairs and --resolution")


def run(options: argparse.Namespace) -> int:
    from latent_robust.data import parse_contamination

    corruptions = parse_contamination(options.contamination)
    if options.pairs:
        return _contaminate_pairs(options, corruptions)
    return _contaminate_images(options, corruptions)


def _contaminate_images(options: argparse.Namespace, corruptions: Sequence[Corruption]) -> int:
    from latent_robust.data import contaminate_folder

    images = open_dataset_images(options)
    contaminate_folder(images, corruptions, options.seed, options.out)
    print(f"{len(images)} images with manifest.jsonl: {options.out}")
    print_quarantine(images.quarantine)
    return 0


def _contaminate_pairs(options: argparse.Namespace, corruptions: Sequence[Corruption]) -> int:
    from latent_robust.data import ContaminatedPairs, contaminate_pairs, make_buckets

    buckets = make_buckets(options.resolution, max_ratio=2.0 if options.buckets else 1.0)
    pairs = open_dataset_pairs(options)
    encode = None
    if options.model is not None:
        from latent_robust.latent.base.components import load_components

        encode = load_components(options.model, offline=options.offline).encode_means
    samples = ContaminatedPairs(
        pairs, corruptions, options.seed, buckets, encode, offline=options.offline
    )
    contaminate_pairs(samples, options.out)
    print(f"{pairs.summary()}; contaminated pairs with manifest.jsonl: {options.out}")
    print_quarantine(pairs.quarantine)
    for name in pairs.without_image:
        print(f"left out: {name}: its image does not exist")
    return 0
