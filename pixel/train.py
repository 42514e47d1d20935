"""train-pixel: from a picture set that may be dirty to a network, its samples and a report."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from latent_robust.core import derive_seed
from latent_robust.data import (
    ContaminatedPictures,
    estimate_band,
    open_pictures,
    parse_contamination,
    read_levels,
    write_quarantine,
)
from latent_robust.evaluation.features import Extractor, make_extractor
from latent_robust.evaluation.figures import save_grid
from latent_robust.evaluation.metrics import evaluate
from latent_robust.evaluation.report import metrics_text, write_report
from latent_robust.files import write_json, writing
from latent_robust.training.command import INTERRUPTED, run_command
from latent_robust.training.loop import Trainer
from latent_robust.training.options import parse_options
from latent_robust.training.run import (
    choose_directory,
    dump,
    identity,
    resume,
    start_accelerator,
    write_config,
)

from .config import PixelConfig
from .network import build_network
from .task import PREVIEW, PixelTask

logger = logging.getLogger(__name__)
BAND_PICTURES = 2048  # enough for the median of `band: auto`


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _main(argv))


# What `train-pixel` does when it is not told what to train on.
DEMO = ["--contamination", "gaussian:fraction=0.9,sigma=0.2", "--beside", "ddpm"]


def _main(argv: list[str]) -> int:
    told = any(word.startswith(("--config", "--data", "--contamination")) for word in argv)
    config = parse_options(PixelConfig, argv if told else [*DEMO, *argv], prog="train-pixel")
    if config.dry_run:
        return _dry_run(config)
    kind = config.data.partition(":")[0].strip("./").replace("/", "-")
    out = choose_directory(config, f"{kind}-{config.objective}")
    runs = [(config, out)]
    if config.beside not in (None, config.objective):
        # First, so that the report of the main run can be written when that ends.
        plain = {"objective": config.beside, "beside": None, "resume": config.resume and "auto"}
        runs.insert(0, (config.model_copy(update=plain), out / config.beside))
    for settings, folder in runs:
        if not train(settings, folder):
            print(f"stopped; go on with: train-pixel --out {out} --resume", file=sys.stderr)
            return INTERRUPTED
    if os.environ.get("RANK", "0") != "0":
        return 0
    folders = [folder for _, folder in runs]
    with writing(out):
        report = write_report(folders, out / "report.html")
    if config.samples:
        print(f"\n{metrics_text(folders)}")
    print(f"\nreport: {report}")
    return 0


def _dry_run(config: PixelConfig) -> int:
    """Touches nothing: no file, no network, no data."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(config).parameters())
    print(dump(config), end="")
    also = f", after {config.beside}" if config.beside else ""
    print(
        f"# would train {config.objective}{also}: a U-Net of {parameters / 1e6:.2f} M parameters "
        f"on {config.data} at {config.size}x{config.size}, {config.steps} steps of "
        f"{config.batch_size * config.gradient_accumulation} pictures a process"
    )
    return 0


def train(config: PixelConfig, out: Path) -> bool:
    """One run, from data to metrics. False when a signal stopped it."""
    if config.resume is not None and finished(out, config.steps):
        return True
    dataset = open_dataset(config)
    if config.band == "auto":
        # Flat pictures have an estimate of 0, which is no band.
        band = max(estimate_band(dataset.sample_tensor(limit=BAND_PICTURES)), 1e-3)
        config = config.model_copy(update={"band": band})
    accelerator = start_accelerator(config, out)
    main = accelerator.is_main_process
    torch.manual_seed(derive_seed(config.seed, "weights"))
    task = PixelTask(config, dataset, out, main)
    trainer = Trainer(
        task,
        config.objective_for(task.process),
        config,
        accelerator,
        out=out,
        levels=levels_of(config, dataset),
        identity=identity(config, dataset.fingerprint(), accelerator.num_processes),
    )
    # What can be refused is refused before anything is written or trained.
    extractors = extractors_of(config, accelerator.device) if main and config.samples else []
    resume(trainer, config.resume, out)
    if main:
        prepare_directory(config, dataset, out)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("tensorboard")

    fresh, started = trainer.step == 0, time.perf_counter()
    if not trainer.train():
        return False
    seconds = time.perf_counter() - started if fresh else None
    if main:
        trainer.with_average(
            lambda network: finish(config, task, network, extractors, out, seconds)
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return True


def finished(out: Path, steps: int) -> bool:
    try:
        return json.loads((out / "metrics.json").read_text())["steps"] == steps
    except FileNotFoundError:
        return False


def open_dataset(config: PixelConfig) -> ContaminatedPictures:
    pictures = open_pictures(
        config.data,
        size=config.size,
        channels=config.channels,
        limit=config.limit,
        max_bad_fraction=config.max_bad_fraction,
        offline=config.offline,
    )
    corruptions = parse_contamination(config.contamination_specs)
    return ContaminatedPictures(pictures, corruptions, config.seed)


def extractors_of(config: PixelConfig, device: torch.device) -> list[Extractor]:
    return [
        make_extractor(spec, device=device, weights=config.weights, offline=config.offline)
        for spec in config.features
    ]


def levels_of(config: PixelConfig, dataset: ContaminatedPictures) -> Tensor | None:
    if config.objective != "ambient":
        return None
    if config.levels is not None:
        return read_levels(config.levels, len(dataset))
    return dataset.levels()


def prepare_directory(config: PixelConfig, dataset: ContaminatedPictures, out: Path) -> None:
    """What is known before the first step: settings, what was broken, what it trains on."""
    with writing(out):
        (out / "samples").mkdir(parents=True, exist_ok=True)
        write_config(config, out)
        dataset.write_manifest(out / "manifest.jsonl")
        if dataset.quarantine:
            write_quarantine(dataset.quarantine, out / "quarantine.jsonl")
            print(
                f"{len(dataset.quarantine)} broken pictures are left out, see "
                f"{out / 'quarantine.jsonl'}",
                file=sys.stderr,
            )
        save_grid(dataset.sample_tensor(limit=PREVIEW), out / "samples" / "training.png")
        save_grid(dataset.clean_tensor(limit=PREVIEW), out / "samples" / "clean.png")


def finish(
    config: PixelConfig,
    task: PixelTask,
    network: nn.Module,
    extractors: list[Extractor],
    out: Path,
    seconds: float | None,
) -> None:
    """With the averaged weights: save them for diffusers, draw, measure, report.

    seconds: how long training took; None if it was resumed.
    """
    with writing(out):
        network.save_pretrained(out / "unet")
        task.scheduler.save_pretrained(out / "scheduler")
        facts = {
            "objective": config.objective,
            "steps": config.steps,
            "seed": config.seed,
        }
        if seconds is not None:
            facts["seconds"] = round(seconds, 1)
        measured = measure(config, task, network, extractors, out) if extractors else {}
        write_json(out / "metrics.json", {**facts, **measured})
        write_report([out], out / "report.html")


def measure(
    config: PixelConfig,
    task: PixelTask,
    network: nn.Module,
    extractors: list[Extractor],
    out: Path,
) -> dict:
    """Distances of fresh samples, and of the training set itself, to the *clean* pictures."""
    samples = task.draw(network, config.samples)
    if not samples.isfinite().all():
        logger.warning("the network draws non-finite pictures: it has diverged; nothing to measure")
        return {}
    save_grid(samples[:PREVIEW], out / "samples" / "final.png")
    count = min(len(task.dataset), max(config.samples, 10_000))
    clean, dirty = task.dataset.clean_tensor(count), task.dataset.sample_tensor(count)
    return {
        "metrics": evaluate(samples, clean, extractors, training=dirty, seed=config.seed),
        "floors": {"training set": evaluate(dirty, clean, extractors, seed=config.seed)},
    }


if __name__ == "__main__":
    sys.exit(main())
