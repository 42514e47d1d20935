"""train-pixel: from a picture set that may be dirty to a network, its samples and a report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_robust.core import LEVELLED, Weighting, derive_seed
from latent_robust.data import (
    ContaminatedPictures,
    audit_pictures,
    open_pictures,
    parse_contamination,
    pictures_to_look_at,
    read_levels,
    recommend,
)
from latent_robust.evaluation.report import metrics_text, write_report
from latent_robust.evaluation.sampling import load_judge
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

from .config import PixelConfig
from .network import build_network, start_from
from .output import Output
from .task import PixelTask

# What `train-pixel` does when it is not told what to train on.
DEMO = {"contamination": "gaussian:fraction=0.9,sigma=0.2", "beside": "ddpm"}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    config = configure(argv)
    parse_contamination(config.contamination)
    if config.dry_run:
        return _dry_run(config)
    kind = config.data.partition(":")[0].strip("./").replace("/", "-") or Path.cwd().name
    out = choose_directory(config, f"{kind}-{config.objective}")
    if config.resume is not None and (out / "config.yaml").exists():
        config = configure_continuation(config, argv, out, prog="train-pixel")

    runs = runs_within(config, out)
    refuse_occupied(runs)
    accelerator = start_accelerator(config)
    pictures = open_pictures(
        config.data,
        size=config.size,
        channels=config.channels,
        limit=config.limit,
        max_bad_fraction=config.max_bad_fraction,
        offline=config.offline,
    )
    corruptions = parse_contamination(config.contamination)
    dataset = ContaminatedPictures(pictures, corruptions, config.seed)
    dataset.materialize()
    found = resolve_weighting(config, dataset, accelerator)
    runs = [(config.model_copy(update=found), folder) for config, folder in runs]
    outputs = [Output(*run, dataset, accelerator) for run in runs]
    if accelerator.is_main_process:
        # Now, so that a run that is stopped in its first part can be resumed.
        write_config(runs[-1][0], out)
    for number, output in enumerate(outputs):
        if not train(output, accelerator):
            say_how_to_go_on("train-pixel", out, accelerator)
            return INTERRUPTED
        if accelerator.is_main_process:
            folders = [folder for _, folder in runs[: number + 1]]
            report = write_report(folders, output.out / "report.html")
    if accelerator.is_main_process:
        if config.samples:
            print(f"\n{metrics_text(folders)}")
        print(f"\nreport: {report}")
    accelerator.end_training()
    return 0


def configure(argv: list[str]) -> PixelConfig:
    argv = [*saved_options(argv), *argv]
    told = any(word.startswith(("--config", "--data", "--contamination")) for word in argv)
    return parse_options(PixelConfig, argv, prog="train-pixel", values={} if told else DEMO)


def resolve_weighting(
    config: PixelConfig, dataset: ContaminatedPictures, accelerator: Accelerator
) -> dict[str, float | list[float]]:
    """=>  the numbers for what the configuration leaves to the pictures. What no objective asks for
    is left open, for who copies this configuration to another one."""
    given = config.open_weighting
    if given is None:
        return {}
    found = recommend(
        dataset.sample_tensor(limit=pictures_to_look_at(config.size, config.channels)),
        config.forecast_attack,
        config.parameterization,
        **given,
    )
    chosen = {**found.settings(), **given}
    if accelerator.is_main_process:
        print(f"{found.summary()}\n{Weighting('band', **chosen)}")
    return chosen


def _dry_run(config: PixelConfig) -> int:
    """Touches nothing: no file, no network, no data."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(config).parameters())
    print(dump(config), end="")
    print(
        f"# would train {in_their_order(config)}: a U-Net of {parameters / 1e6:.2f} M parameters "
        f"on {config.data} at {config.size}x{config.size}, {config.steps} steps of "
        f"{config.batch_size * config.gradient_accumulation} pictures a process each"
    )
    return 0


def train(output: Output, accelerator: Accelerator) -> bool:
    """One run, from the first step to the metrics. False when a signal stopped it."""
    config, dataset, out = output.config, output.dataset, output.out
    if config.resume is not None and is_finished(config, out):
        return True
    levels = find_levels(output, accelerator) if config.objective in LEVELLED else None
    torch.manual_seed(derive_seed(config.seed, "weights"))
    task = PixelTask(config, dataset, out, accelerator.is_main_process)
    # What the judge knows of clean pictures need not be learned again.
    start = out / config.judged_by if config.objective == "audited" else config.init
    if start is not None and saved(config.resume, out) is None:
        start_from(task.network, config, start)
    if config.stop_at is None and levels is not None and not config.drop_noisy:
        # Nothing is trained below the least level: there the network's answers are arbitrary.
        least = levels.reshape(len(levels), -1).amax(1).min().item()
        task.stop_at = float(f"{least:.3g}") or None
        if task.stop_at is not None and accelerator.is_main_process:
            print(f"nothing is clean: the sampler stops at noise {task.stop_at:g}")
    trainer = Trainer(
        task,
        config.objective_for(task.process),
        config,
        accelerator,
        out=out,
        levels=levels,
        identity=identity(config, dataset.fingerprint(), accelerator.num_processes),
    )
    return complete(trainer, output.begin, partial(output.finish, task))


def find_levels(output: Output, accelerator: Accelerator) -> Tensor:
    """The noise level of each picture: from a file, from the audit, or from the manifest."""
    config, dataset, out = output.config, output.dataset, output.out
    file = config.levels
    if config.objective == "audited":

        def write(file: Path) -> None:
            look, process = load_judge(out / config.judged_by, dataset, accelerator.device)
            found = audit_pictures(look, process, dataset, seed=config.seed)
            print(f"audit: {found.summary()}")
            found.write(file, dataset.name)

        file = made_once(out / AUDIT, accelerator, write)
    if file is not None:
        return read_levels(file, len(dataset), config.channels)
    # What has no level is left out for its dirt all the same.
    return dataset.dirty().float() if config.drop_noisy else dataset.levels()


if __name__ == "__main__":
    sys.exit(main())
