"""Load the model, prepare the data and train the runs of one `finetune-latent` command."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_robust.audit import read_doubtful, read_levels
from latent_robust.core import Levels, derive_seed
from latent_robust.training.continuation import identity
from latent_robust.training.directory import AUDIT, is_finished, write_config
from latent_robust.training.loop import Trainer
from latent_robust.training.objectives import build_objective
from latent_robust.training.plan import BASE, without_repetition
from latent_robust.training.resume import saved_checkpoint
from latent_robust.training.run import complete, compute_on_main

from .base.components import Components, load_components, release_memory
from .config import LatentConfig
from .data import cache_folder
from .finished import audit_pairs, check_compatible, load_finished, start_from
from .full_finetune import unfreeze_network
from .lora.adapters import adapted_layers, add_lora
from .memory import cached_estimate, require_memory
from .output import Evaluators, LatentOutput
from .precision import load_dtypes
from .preparation import Preparation, prepare
from .task import LatentTask


class LatentSession:
    """The `Session` of latent_robust/commands/training.py for latent-space runs.

    The constructor raises InputError for settings, models and data that cannot be used."""

    def __init__(
        self,
        config: LatentConfig,
        out: Path,
        runs: Sequence[tuple[LatentConfig, Path]],
        accelerator: Accelerator,
    ):
        self.out, self.accelerator = out, accelerator
        self.make_components = partial(load, config, accelerator)
        components = self.make_components()
        if config.lora:
            adapted_layers(components, config.targets)  # refuses a wrong name before encoding
        fresh = [
            config.init and saved_checkpoint(part.resume, folder) is None for part, folder in runs
        ]
        if any(fresh):
            check_compatible(components, config, config.init)
        config.check_bands(components.vae.config.latent_channels)
        resolution = config.resolution or native_resolution(components)
        config = config.model_copy(update={"resolution": resolution})
        self.evaluators = Evaluators(config, accelerator.device)
        with components.offload():  # VAE and text encoders have the device to themselves
            # No variable for these components: it would keep them alive when they are unloaded.
            self.prepared = prepare(
                config, components.without(components.family.network_name), out, accelerator
            )
        resolved = {"resolution": resolution, **self.prepared.weighting}
        self.runs = without_repetition(
            [(config.model_copy(update=resolved), folder) for config, folder in runs]
        )
        self.starts_from_init = dict(zip((folder for _, folder in runs), fresh, strict=True))
        self._untrained: Components | None = components
        self._files = ""

    def train(self, number: int) -> bool:
        """Run `number`, from the first step to the metrics. False if a signal stopped it."""
        config, folder = self.runs[number]
        components = self._untrained or self.make_components()
        self._untrained = None
        make_trainable(config, components)
        if self.starts_from_init[folder]:
            start_from(components, config, config.init)
        release_encoders(config, components, self.prepared)
        if number == 0:
            configs = [config for config, _ in self.runs]
            check_memory(configs, components, self.prepared, self.accelerator, self.out)
        output = LatentOutput(
            config,
            folder,
            components,
            self.prepared,
            self.evaluators,
            self.accelerator,
            self.make_components,
        )
        finished = train(output, self.accelerator, root_run=self.runs[-1])
        if finished and self.accelerator.is_main_process:
            self._files = what_was_made(output)
        del components, output
        release_memory()  # before the next model is loaded
        return finished

    def what_was_made(self) -> str:
        """The files of the last run, and how to use them."""
        return self._files


def what_was_made(output: LatentOutput) -> str:
    """The files of a run, whether they were verified, and how to use them."""
    out, network_name = output.out, output.components.family.network_name
    if output.config.full:
        return (
            f"the trained denoiser is in {out / network_name}, a diffusers folder: load it with "
            "from_pretrained and pass it to your pipeline"
        )
    files = [f"  {file.name} {use}" for file, use in output.lora_files().items()]
    return "\n".join([f"the LoRA is in {out}:", *files]).replace('"DIR"', f'"{out}"')


def load(config: LatentConfig, accelerator: Accelerator) -> Components:
    """The run's base model on the device, in the precision of training."""
    return load_components(
        config.model,
        offline=config.offline,
        device=accelerator.device,
        **load_dtypes(config.lora, config.mixed_precision),
    )


def native_resolution(components: Components) -> int:
    """The model's training resolution: pixels per side."""
    pipeline = components.pipeline
    sample_size = getattr(pipeline, "default_sample_size", None)
    return (sample_size or components.network.config.sample_size) * pipeline.vae_scale_factor


def make_trainable(config: LatentConfig, components: Components) -> None:
    """Add adapters, or unfreeze the network, as the configuration says."""
    if config.gradient_checkpointing:
        components.network.enable_gradient_checkpointing()
    if config.full:
        unfreeze_network(components)
    else:
        add_lora(
            components,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.targets,
            dora=config.dora,
            text_encoder=config.text_encoder,
            seed=config.seed,
        )


def release_encoders(config: LatentConfig, components: Components, prepared: Preparation) -> None:
    """Encode every prompt used later, then free the text encoders and the VAE if training does not
    need them."""
    for prompts in (prepared.prompts, prepared.metric_prompts):
        prompts.conditions(components)
    if config.cache and not config.text_encoder:
        generates = config.samples > 0 or bool(prepared.prompts.captions)
        components.unload_encoders(keep_vae=generates or "encoder-poison" in config.contamination)


def check_memory(
    configs: Sequence[LatentConfig],
    components: Components,
    prepared: Preparation,
    accelerator: Accelerator,
    out: Path,
) -> None:
    """Print the memory of a training step, the largest of all runs. InputError if it does not
    fit."""
    item = prepared.dataset.__getitems__(prepared.train_indices[:1])
    folder = cache_folder(configs[-1], out)
    estimates = [cached_estimate(folder, components, config, item) for config in configs]
    largest = max(estimates, key=lambda estimate: estimate.total)
    if accelerator.is_main_process:
        print(f"a training step takes about {largest}")
    require_memory(largest, accelerator.device, configs[0])


def train(
    output: LatentOutput, accelerator: Accelerator, *, root_run: tuple[LatentConfig, Path]
) -> bool:
    """Train one run, from the first step to the metrics. False if a signal stopped it.

    root_run: configuration and directory of the run that this one belongs to, or is itself."""
    config, out, prepared = output.config, output.out, output.prepared
    components = output.components
    if config.resume is not None and is_finished(config, out):
        return True
    levels = doubtful = None
    if config.facts.needs_levels:
        levels, doubtful = find_levels(output, accelerator)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    task = LatentTask(
        config,
        components,
        prepared.dataset,
        prepared.train_indices,
        prepared.captions,
        output.on_checkpoint,
        levels if config.tag_dirt else None,
        prepared.tags,
        doubtful,
    )
    if levels is not None and config.tag_dirt:
        levels = levels.own_noise()  # the words do the rest
    trainer = Trainer(
        task,
        build_objective(config, task.process),
        config,
        accelerator,
        out=out,
        levels=levels,
        identity=identity(config, prepared.pairs.fingerprint(), accelerator.num_processes),
    )

    def begin() -> None:
        write_config(*root_run)  # already now: a run stopped in its first part can be resumed
        output.begin()

    return complete(trainer, begin, output.finish)


def find_levels(
    output: LatentOutput, accelerator: Accelerator
) -> tuple[Levels | None, Tensor | None]:
    """=>  the two numbers of each pair's latents: from the audit if the objective needs one, else
    from a file or the manifest; and which captions are doubtful, (N,), None from the manifest."""
    config, prepared, out = output.config, output.prepared, output.out
    if not config.facts.needs_audit:
        doubtful = config.levels and read_doubtful(config.levels, len(prepared.pairs))
        return prepared.levels, doubtful

    def auditor() -> Components:
        return load_finished(
            out / config.auditor,
            config.model_dump(),
            device=str(accelerator.device),
            offline=config.offline,
        )

    def write(file: Path) -> None:
        captions = prepared.captions if config.text_encoder else None
        audit = partial(
            audit_pairs,
            encoded=prepared.dataset,
            pairs=prepared.pairs,
            captions=captions,
            noise=prepared.noise,
            seed=config.seed,
            check_captions=config.check_captions,
        )
        if config.auditor == BASE and config.init is None:
            result = audit(output.components)  # still the base model: new adapters add 0
        else:
            with output.components.offload():
                result = audit(output.make_components() if config.auditor == BASE else auditor())
        print(f"audit: {result.summary()}")
        result.write(file, prepared.pairs.name)

    file = compute_on_main(out / AUDIT, accelerator, write)
    channels = prepared.dataset.__getitems__([0])["mean"].shape[1]
    count = len(prepared.pairs)
    return read_levels(file, count, channels), read_doubtful(file, count)
