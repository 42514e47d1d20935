"""From a configuration to trained pixel-space runs: data, auditor, training, files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator

from latent_robust.audit import data_audit_of, read_levels, recommend, to_measure
from latent_robust.core import Levels, Weighting, derive_seed
from latent_robust.data import ContaminatedImages
from latent_robust.training.continuation import identity
from latent_robust.training.directory import AUDIT, is_finished, write_config
from latent_robust.training.loop import Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.plan import without_repetition
from latent_robust.training.resume import saved_checkpoint
from latent_robust.training.run import complete, compute_on_main

from .config import PixelConfig
from .data import contaminated_images
from .finished import audit_with
from .network import start_from
from .output import Output
from .task import PixelTask


class PixelSession:
    """The `Session` of latent_robust/commands/training.py for images."""

    def __init__(
        self,
        config: PixelConfig,
        out: Path,
        runs: Sequence[tuple[PixelConfig, Path]],
        accelerator: Accelerator,
    ):
        self.accelerator = accelerator
        dataset = contaminated_images(config.model_dump())
        found = data_audit_of(dataset, config.audit)
        if found is not None and accelerator.is_main_process:
            print(f"{config.audit}: {found.summary()}")
        dataset.materialize()
        weighting = resolve_weighting(config, dataset, accelerator)
        self.runs = without_repetition(
            [(config.model_copy(update=weighting), folder) for config, folder in runs]
        )
        self.outputs = [Output(*run, dataset, accelerator, found) for run in self.runs]
        if accelerator.is_main_process:
            # Now, so that a command stopped while the baseline trains can be resumed.
            write_config(self.runs[-1][0], out)

    def train(self, number: int) -> bool:
        return train(self.outputs[number], self.accelerator)

    def what_was_made(self) -> str:
        out = self.outputs[-1].out
        return (
            f"network: {out / 'unet'}\nscheduler: {out / 'scheduler'} (both load in diffusers)\n"
            f"generate more images: latent-robust sample {out} --out samples.png"
        )


def resolve_weighting(
    config: PixelConfig, dataset: ContaminatedImages, accelerator: Accelerator
) -> dict[str, float | list[float]]:
    """=>  weight and band where the configuration says auto, chosen from the training images; {} if
    nothing is auto, or if no run uses them."""
    given = config.given_weighting
    if given is None:
        return {}
    samples, left = to_measure(dataset)
    recommendation = recommend(
        samples, config.forecast_attack, config.parameterization, left=left, **given
    )
    chosen = {**recommendation.settings(), **given}
    if accelerator.is_main_process:
        print(f"{recommendation.summary()}\n{Weighting('band', **chosen)}")
    return chosen


def train(output: Output, accelerator: Accelerator) -> bool:
    """Train one run and measure it. False if a signal stopped it."""
    config, dataset, out = output.config, output.dataset, output.out
    if config.resume is not None and is_finished(config, out):
        return True
    levels = find_levels(output, accelerator) if config.facts.needs_levels else None
    torch.manual_seed(derive_seed(config.seed, "weights"))
    tagged = levels if config.tag_dirt else None
    left_out = None if output.found is None else output.found.left_out
    task = PixelTask(config, dataset, out, accelerator.is_main_process, tagged, left_out)
    if levels is not None and config.tag_dirt:
        levels = levels.own_noise()  # the class does the rest
    # An audited run goes on from the network of its auditor.
    start = out / config.auditor_run if config.facts.needs_audit else config.init
    if start is not None and saved_checkpoint(config.resume, out) is None:
        start_from(task.network, config, start)
    if config.stop_at is None and levels is not None and not config.drop_noisy:
        # The network is not trained below the lowest level, so its predictions there are arbitrary.
        lowest = levels.usable_from.min().item()
        task.stop_at = (float(f"{lowest:.3g}") or None) if isfinite(lowest) else None
        if task.stop_at is not None and accelerator.is_main_process:
            print(f"no training image is clean: the sampler stops at noise level {task.stop_at:g}")
    trainer = Trainer(
        task,
        build_objective(config, task.process),
        config,
        accelerator,
        out=out,
        levels=levels,
        identity=identity(config, dataset.fingerprint(), accelerator.num_processes),
    )
    return complete(trainer, output.begin, partial(output.finish, task))


def find_levels(output: Output, accelerator: Accelerator) -> Levels:
    """The two numbers of each image: from --levels, from the audit, or from the
    manifest of the contamination."""
    config, dataset, out = output.config, output.dataset, output.out
    file = config.levels
    if config.facts.needs_audit:

        def write(file: Path) -> None:
            auditor = out / config.auditor_run
            audit = audit_with(auditor, dataset, device=accelerator.device, seed=config.seed)
            print(f"audit: {audit.summary()}")
            audit.write(file, dataset.name)

        file = compute_on_main(out / AUDIT, accelerator, write)
    if file is not None:
        return read_levels(file, len(dataset), config.channels)
    if output.found is not None:
        return output.found.levels
    # drop_noisy without levels leaves out every image with a corruption of any kind.
    if config.drop_noisy:
        return Levels.never_for(dataset.dirty())
    return Levels(dataset.levels())
