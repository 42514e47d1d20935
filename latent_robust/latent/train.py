"""finetune-latent: from captioned pictures that may be dirty to a LoRA, samples and a report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from latent_robust.core import derive_seed
from latent_robust.data import parse_contamination, read_levels
from latent_robust.errors import InputError
from latent_robust.evaluation.report import metrics_text, write_report
from latent_robust.training.command import INTERRUPTED, run_command
from latent_robust.training.loop import Trainer
from latent_robust.training.options import parse_options
from latent_robust.training.run import (
    choose_directory,
    complete,
    configure_continuation,
    dump,
    identity,
    is_finished,
    say_how_to_go_on,
    start_accelerator,
    write_config,
)

from .band import encoder_gain
from .components import Components, load_components
from .config import LatentConfig
from .full import unfreeze_network
from .lora import add_lora
from .memory import estimate_memory, require_memory
from .output import Judges, LatentOutput
from .preparation import Preparation, prepare
from .task import LatentTask

PROG = "finetune-latent"

# What `finetune-latent --lora` does when it is not told what to train on.
DEMO = [
    *("--contamination", "gaussian:fraction=0.9,sigma=0.2", "--beside", "ddpm"),
    *("--steps", "1500", "--batch-size", "16", "--learning-rate", "1e-3", "--samples", "256"),
    *("--guidance", "2", "--checkpoint-every", "500"),
]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    config = configure(argv)
    parse_contamination(config.contamination_specs)
    if config.dry_run:
        return _dry_run(config)
    out = choose_directory(config, f"{Path(config.model).stem}-{config.objective}")
    if config.resume is not None and (out / "config.yaml").exists():
        config = configure_continuation(LatentConfig, argv, out, prog=PROG)

    accelerator = start_accelerator(config)
    make_components = partial(load, config, accelerator)
    components = make_components()
    resolution = config.resolution or native_resolution(components)
    config = config.model_copy(update={"resolution": resolution})
    judges = Judges(config, accelerator.device)
    prepared = prepare(config, components, out, accelerator)
    if prepared.band is not None:
        config = config.model_copy(update={"band": prepared.band})
    runs = [(config, out)]
    if config.beside not in (None, config.objective):
        # First, so that the report of the main run can be written when that ends.
        plain = {"objective": config.beside, "beside": None}
        other = {**config.model_dump(), **plain, "resume": config.resume and "auto"}
        runs.insert(0, (LatentConfig.model_validate(other), out / config.beside))
    if accelerator.is_main_process:
        write_config(config, out)  # now, so that a run stopped in its first part can be resumed
    for number, run in enumerate(runs):
        trained = components if number == 0 else make_components()
        output = LatentOutput(*run, trained, prepared, judges, accelerator, make_components)
        if not train(output, accelerator):
            say_how_to_go_on(PROG, argv, out)
            return INTERRUPTED
    if accelerator.is_main_process:
        folders = [folder for _, folder in runs]
        report = write_report(folders, out / "report.html")
        if config.samples:
            print(f"\n{metrics_text(folders)}")
        print(f"\nreport: {report}")
    accelerator.end_training()
    return 0


def configure(argv: list[str]) -> LatentConfig:
    told = ("--config", "--model", "--data", "--contamination")
    demo = not any(word.startswith(told) for word in argv)
    return parse_options(LatentConfig, [*DEMO, *argv] if demo else argv, prog=PROG)


def _dry_run(config: LatentConfig) -> int:
    """Touches nothing: no file, no network, no model."""
    print(dump(config), end="")
    what = f"LoRA of rank {config.rank}" if config.lora else "the whole denoiser"
    also = f", after {config.beside}" if config.beside else ""
    print(
        f"# would train {what} of {config.model} by {config.objective}{also} on {config.data}, "
        f"{config.steps} steps of {config.batch_size * config.gradient_accumulation} pictures a "
        "process"
    )
    return 0


def load(config: LatentConfig, accelerator: Accelerator) -> Components:
    """Frozen weights in the precision of training; what is trained whole stays in float32."""
    precision = config.mixed_precision if config.lora else "no"
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    components = load_components(
        config.model, offline=config.offline, dtype=dtype, device=accelerator.device
    )
    components.vae.float()  # half precision would put its own noise into every latent
    return components


def native_resolution(components: Components) -> int:
    """Pixels a side that the model was trained at."""
    pipeline = components.pipeline
    sample_size = getattr(pipeline, "default_sample_size", None)
    return (sample_size or components.network.config.sample_size) * pipeline.vae_scale_factor


def train(output: LatentOutput, accelerator: Accelerator) -> bool:
    """One run, from the first step to the metrics. False when a signal stopped it."""
    config, out, prepared = output.config, output.out, output.prepared
    components = output.components
    if config.resume is not None and is_finished(out, config.steps):
        return True
    torch.manual_seed(derive_seed(config.seed, "weights"))
    _make_trainable(config, components)
    task = LatentTask(
        config, components, prepared.dataset, prepared.training, prepared.captions, output.watch
    )
    _check_memory(config, components, prepared, accelerator)
    for prompts in (prepared.prompts, prepared.measured):
        prompts.conditions(components)
    if config.cache and not config.text_encoder:
        components.unload_encoders(keep_vae=config.samples > 0 or bool(prepared.prompts.captions))
    trainer = Trainer(
        task,
        config.objective_for(task.process),
        config,
        accelerator,
        out=out,
        levels=_levels(config, components, prepared) if config.objective == "ambient" else None,
        identity=identity(config, prepared.pairs.fingerprint(), accelerator.num_processes),
    )
    return complete(trainer, output.begin, output.finish)


def _make_trainable(config: LatentConfig, components: Components) -> None:
    if config.gradient_checkpointing:
        components.network.enable_gradient_checkpointing()
    if config.full:
        return unfreeze_network(components)
    return add_lora(
        components,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=config.targets,
        dora=config.dora,
        text_encoder=config.text_encoder,
        seed=config.seed,
    )


def _check_memory(config, components, prepared: Preparation, accelerator: Accelerator) -> None:
    item = prepared.dataset.__getitems__(prepared.training[:1])
    estimate = estimate_memory(components, config, item)
    if accelerator.is_main_process:
        print(f"a training step takes about {estimate}")
    require_memory(estimate, accelerator.device, config)


def _levels(config: LatentConfig, components: Components, prepared: Preparation) -> torch.Tensor:
    """Of each pair, in units of the latents: from a file, or the manifest's, carried over by the
    encoder's gain."""
    if config.levels is not None:
        return read_levels(config.levels, len(prepared.pairs))
    levels = prepared.pairs.levels()
    if not levels.any():
        raise InputError("objective ambient: no pair has Gaussian noise; give --levels FILE")
    samples = [prepared.pairs.clean(i) for i in range(min(16, len(levels)))]
    return levels * encoder_gain(samples, levels[levels > 0].median().item(), components)


if __name__ == "__main__":
    sys.exit(main())
