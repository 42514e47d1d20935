"""`finetune-latent`: train a LoRA or a whole denoiser on captioned images that may be dirty."""

from __future__ import annotations

import sys
from pathlib import Path

from latent_robust.data.sources.spec import PAIR_FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.latent.base.model_spec import DEMO, model_kind
from latent_robust.latent.config import LatentConfig
from latent_robust.training.plan import describe_schedule

from .training import TrainCommand, check_contamination, check_trusted, run_training

EXAMPLES = """\
examples:
  finetune-latent --lora                        demo: a tiny model, noisy scenes, minutes on a CPU
  finetune-latent --lora --model MODEL --data DIR --out runs/mine
  finetune-latent --lora --model MODEL --data DIR --objective audited --out runs/audited
  finetune-latent --resume runs/mine            resume after Ctrl-C or a crash
"""
BUILT_IN_DATA = "scenes"


def check(config: LatentConfig) -> None:
    """Raises InputError for a model or data that do not exist, and for an invalid contamination."""
    given = config.model_fields_set
    if config.data != BUILT_IN_DATA and "model" not in given:
        raise InputError(
            "--data needs --model: name the model to fine-tune, or give --model demo for the "
            "built-in toy, which generates 32 x 32 pixels and knows only simple shapes"
        )
    if config.model != DEMO and "data" not in given:
        raise InputError(
            "--model needs --data: name a folder of captioned images, or give --data "
            f"{BUILT_IN_DATA} for those of the demo, which have 32 x 32 pixels"
        )
    model_kind(config.model)
    for spec in (config.data, config.reference):
        if spec is not None:
            parse_spec(spec, PAIR_FORMS)
    check_contamination(config.contamination)
    check_trusted(config, PAIR_FORMS)


def describe(config: LatentConfig) -> str:
    what = f"a LoRA of rank {config.rank} for" if config.lora else "the whole denoiser of"
    dirty = "" if config.contamination == "none" else f" (contaminated by {config.contamination!r})"
    size = config.batch_size * config.gradient_accumulation
    return (
        f"train {what} {config.model} by {describe_schedule(config)} on {config.data}{dirty} for "
        f"{config.steps:,} steps per objective, {size} pairs per step and process"
    )


def default_name(config: LatentConfig) -> str:
    return f"{Path(config.model).stem}-{config.objective}"


COMMAND = TrainCommand(
    prog="finetune-latent",
    module="latent_robust.commands.finetune_latent",
    config_class=LatentConfig,
    demo={
        "contamination": "gaussian:fraction=0.9,sigma=0.2",
        "objective": "audited",
        "compare_with": "ddpm",
        "limit": 2000,
        "held_out": 0.02,
        "samples": 256,
        "guidance": 3.0,
        "rank": 32,
        "targets": ["attention", "mlp", "conv1", "conv2"],
        "batch_size": 16,
        "learning_rate": 3e-3,
        # Shapes form at middle noise levels, where logit-normal trains most.
        "time_sampling": "logit-normal",
        "checkpoint_every": 500,
    },
    says_data=frozenset({"config", "model", "data", "contamination"}),
    check=check,
    describe=describe,
    default_name=default_name,
    session="latent_robust.latent.session:LatentSession",
    saves_memory="--low-memory, or a smaller --batch-size or --resolution",
    examples=EXAMPLES,
)


def main(argv: list[str] | None = None) -> int:
    return run_training(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
