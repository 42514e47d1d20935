"""finetune-latent: from captioned pictures that may be dirty to a LoRA, samples and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_robust.core import LEVELLED, derive_seed
from latent_robust.data import parse_contamination, read_levels
from latent_robust.evaluation.report import metrics_text, write_report
from latent_robust.training.command import INTERRUPTED, run_command
from latent_robust.training.continuation import (
    configure_continuation,
    identity,
    saved,
    saved_options,
)
from latent_robust.training.loop import Trainer
from latent_robust.training.options import parse_options
from latent_robust.training.run import (
    AUDIT,
    BASE,
    choose_directory,
    complete,
    dump,
    in_their_order,
    is_finished,
    made_once,
    refuse_occupied,
    runs_within,
    say_how_to_go_on,
    start_accelerator,
    write_config,
)

from .components import Components, load_components, release_memory
from .config import LatentConfig, dtypes
from .finished import audit_pairs, fitting, load_finished, start_from
from .full import unfreeze_network
from .lora import adapted_layers, add_lora
from .memory import remembered_memory, require_memory
from .output import Judges, LatentOutput
from .preparation import Preparation, cache_folder, prepare
from .task import LatentTask

PROG = "finetune-latent"

SAVES_MEMORY = "--low-memory, or a smaller --batch-size or --resolution"

# What `finetune-latent --lora` does when it is not told what to train on.
DEMO = {
    "contamination": "gaussian:fraction=0.9,sigma=0.2",
    "objective": "audited",
    "beside": "ddpm",
    "limit": 2000,
    "held_out": 0.02,
    "samples": 256,
    "guidance": 3.0,
    "rank": 32,
    "targets": ["attention", "mlp", "conv1", "conv2"],
    "batch_size": 16,
    "learning_rate": 3e-3,
    # A new shape is learned at the noise where shapes are decided.
    "time_sampling": "logit-normal",
    "checkpoint_every": 500,
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _main(argv), saves_memory=SAVES_MEMORY)


def _main(argv: list[str]) -> int:
    config = configure(argv)
    parse_contamination(config.contamination)
    if config.dry_run:
        return _dry_run(config)
    out = choose_directory(config, f"{Path(config.model).stem}-{config.objective}")
    if config.resume is not None and (out / "config.yaml").exists():
        config = configure_continuation(config, argv, out, prog=PROG)

    runs = runs_within(config, out)
    refuse_occupied(runs)

    accelerator = start_accelerator(config)
    make_components = partial(load, config, accelerator)
    components = make_components()
    if config.lora:
        adapted_layers(components, config.targets)  # a wrong name must not cost the encoding
    afresh = [config.init and saved(part.resume, folder) is None for part, folder in runs]
    if any(afresh):
        fitting(components, config, config.init)  # nor must a start that does not fit
    config.check_bands(components.vae.config.latent_channels)
    resolution = config.resolution or native_resolution(components)
    config = config.model_copy(update={"resolution": resolution})
    judges = Judges(config, accelerator.device)
    with components.set_aside():  # what encodes has the device to itself
        # No name for these: it would keep them when they are unloaded.
        prepared = prepare(
            config, components.without(components.family.network_name), out, accelerator
        )
    found = {"resolution": resolution, **prepared.weighting}
    runs = [(config.model_copy(update=found), folder) for config, folder in runs]
    for number, run in enumerate(runs):
        trained = components if number == 0 else make_components()
        make_trainable(config, trained)
        if afresh[number]:
            start_from(trained, config, config.init)
        release_encoders(run[0], trained, prepared)
        if number == 0:
            check_memory([config for config, _ in runs], trained, prepared, accelerator, out)
        output = LatentOutput(*run, trained, prepared, judges, accelerator, make_components)
        if not train(output, accelerator, whole=runs[-1]):
            say_how_to_go_on(PROG, out, accelerator)
            return INTERRUPTED
        if accelerator.is_main_process:
            folders = [folder for _, folder in runs[: number + 1]]
            report = write_report(folders, run[1] / "report.html")
        components = trained = output = None
        release_memory()  # before the next model is loaded
    if accelerator.is_main_process:
        if config.samples:
            print(f"\n{metrics_text(folders)}")
        print(f"\nreport: {report}")
    accelerator.end_training()
    return 0


def configure(argv: list[str]) -> LatentConfig:
    argv = [*saved_options(argv), *argv]
    told = ("--config", "--model", "--data", "--contamination")
    demo = not any(word.startswith(told) for word in argv)
    return parse_options(LatentConfig, argv, prog=PROG, values=DEMO if demo else {})


def _dry_run(config: LatentConfig) -> int:
    """Touches nothing: no file, no network, no model."""
    print(dump(config), end="")
    what = f"LoRA of rank {config.rank}" if config.lora else "the whole denoiser"
    print(
        f"# would train {what} of {config.model} by {in_their_order(config)} on {config.data}, "
        f"{config.steps} steps of {config.batch_size * config.gradient_accumulation} pictures a "
        "process each"
    )
    return 0


def load(config: LatentConfig, accelerator: Accelerator) -> Components:
    return load_components(
        config.model,
        offline=config.offline,
        device=accelerator.device,
        **dtypes(config.lora, config.mixed_precision),
    )


def native_resolution(components: Components) -> int:
    """Pixels a side that the model was trained at."""
    pipeline = components.pipeline
    sample_size = getattr(pipeline, "default_sample_size", None)
    return (sample_size or components.network.config.sample_size) * pipeline.vae_scale_factor


def make_trainable(config: LatentConfig, components: Components) -> None:
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
    """Asks them all that will be asked, and unloads those that training does not need."""
    for prompts in (prepared.prompts, prepared.measured):
        prompts.conditions(components)
    if config.cache and not config.text_encoder:
        draws = config.samples > 0 or bool(prepared.prompts.captions)
        components.unload_encoders(keep_vae=draws or "encoder-poison" in config.contamination)


def check_memory(
    configs: Sequence[LatentConfig],
    components: Components,
    prepared: Preparation,
    accelerator: Accelerator,
    out: Path,
) -> None:
    """InputError if a step of one of the runs does not fit: before the first one is trained."""
    item = prepared.dataset.__getitems__(prepared.training[:1])
    folder = cache_folder(configs[-1], out)
    estimates = [remembered_memory(folder, components, config, item) for config in configs]
    largest = max(estimates, key=lambda estimate: estimate.total)
    if accelerator.is_main_process:
        print(f"a training step takes about {largest}")
    require_memory(largest, accelerator.device, configs[0])


def train(
    output: LatentOutput, accelerator: Accelerator, *, whole: tuple[LatentConfig, Path]
) -> bool:
    """One run, from the first step to the metrics. False when a signal stopped it.

    whole: configuration and directory of the run that this one is a part of, or is."""
    config, out, prepared = output.config, output.out, output.prepared
    components = output.components
    if config.resume is not None and is_finished(config, out):
        return True
    torch.manual_seed(derive_seed(config.seed, "weights"))
    task = LatentTask(
        config, components, prepared.dataset, prepared.training, prepared.captions, output.watch
    )
    trainer = Trainer(
        task,
        config.objective_for(task.process),
        config,
        accelerator,
        out=out,
        levels=find_levels(output, accelerator) if config.objective in LEVELLED else None,
        identity=identity(config, prepared.pairs.fingerprint(), accelerator.num_processes),
    )

    def begin() -> None:
        write_config(*whole)  # now, so that a run stopped in its first part can be resumed
        output.begin()

    return complete(trainer, begin, output.finish)


def find_levels(output: LatentOutput, accelerator: Accelerator) -> Tensor:
    """The noise level of each pair's latents: from a file or the manifest, or from the audit."""
    config, prepared, out = output.config, output.prepared, output.out
    if config.objective != "audited":
        return prepared.levels

    def judge() -> Components:
        return load_finished(
            out / config.judge,
            config.model_dump(),
            device=str(accelerator.device),
            offline=config.offline,
        )

    def write(file: Path) -> None:
        captions = prepared.captions if config.text_encoder else None
        audit = partial(audit_pairs, pairs=prepared.dataset, captions=captions, seed=config.seed)
        if config.judge == BASE and config.init is None:
            found = audit(output.components)  # still the base: new adapters change nothing
        else:
            with output.components.set_aside():
                found = audit(output.make_components() if config.judge == BASE else judge())
        print(f"audit: {found.summary()}")
        found.write(file, prepared.pairs.name)

    file = made_once(out / AUDIT, accelerator, write)
    channels = prepared.dataset.__getitems__([0])["mean"].shape[1]
    return read_levels(file, len(prepared.pairs), channels)


if __name__ == "__main__":
    sys.exit(main())
