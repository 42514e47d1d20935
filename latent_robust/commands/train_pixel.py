"""`train-pixel`: train a pixel-space diffusion model on images that may be dirty."""

from __future__ import annotations

import sys
from pathlib import Path

from latent_robust.data.sources.spec import BUILT_IN, IMAGE_FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.training.plan import describe_schedule
from pixel.config import PixelConfig

from .training import TrainCommand, check_contamination, check_trusted, run_training

EXAMPLES = """\
examples:
  train-pixel                                   demo: digits, 90 % of them noisy, minutes on a CPU
  train-pixel --data DIR --size 32 --channels 3 --out runs/mine
  train-pixel --config configs/pixel/cifar10-robust-adv.yaml --out runs/cifar10
  train-pixel --resume runs/mine                resume after Ctrl-C or a crash
"""


def check(config: PixelConfig) -> None:
    """Raises InputError for data that do not exist, for images of the user's own without a size,
    and for an invalid contamination."""
    for spec in (config.data, config.reference):
        if spec is not None:
            parse_spec(spec, IMAGE_FORMS)
    open_sizes = [name for name in ("size", "channels") if name not in config.model_fields_set]
    if open_sizes and config.data not in BUILT_IN and config.resume is None:
        raise InputError(
            f"--data {config.data} needs --{' and --'.join(open_sizes)}: images are cropped and "
            "resized to N x N pixels (32 or 64 on a CPU), with --channels 3 for colour or 1 for "
            "gray"
        )
    check_contamination(config.contamination)
    check_trusted(config, IMAGE_FORMS)


def describe(config: PixelConfig) -> str:
    channels = "gray" if config.channels == 1 else "RGB"
    dirty = "" if config.contamination == "none" else f", contaminated by {config.contamination!r}"
    size = config.batch_size * config.gradient_accumulation
    widths = "-".join(map(str, config.block_out_channels))
    return (
        f"train {describe_schedule(config)} (U-Net {widths}) on {config.data} "
        f"({config.size} x {config.size}, {channels}{dirty}) for {config.steps:,} steps "
        f"per objective, {size} images per step and process"
    )


def default_name(config: PixelConfig) -> str:
    kind = config.data.partition(":")[0].strip("./").replace("/", "-") or Path.cwd().name
    return f"{kind}-{config.objective}"


COMMAND = TrainCommand(
    prog="train-pixel",
    module="latent_robust.commands.train_pixel",
    config_class=PixelConfig,
    demo={"contamination": "gaussian:fraction=0.9,sigma=0.2", "compare_with": "ddpm"},
    says_data=frozenset({"config", "data", "contamination"}),
    check=check,
    describe=describe,
    default_name=default_name,
    session="pixel.session:PixelSession",
    saves_memory="smaller batches or images",
    examples=EXAMPLES,
)


def main(argv: list[str] | None = None) -> int:
    return run_training(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
