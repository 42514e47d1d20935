"""A finished run of `train-pixel`: load it, sample from it, audit its data with it.

The commands use `generate`, `audit`, `clean_images` and GENERATION_OPTIONS, which every kind of run
has (latent_robust/commands/run_kinds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor

from latent_robust.audit import Audit, audit_images
from latent_robust.core import NoiseProcess
from latent_robust.data import ContaminatedImages, open_images, parse_contamination
from latent_robust.errors import InputError
from latent_robust.evaluation.sampling import generate_samples, sampling_scheduler
from latent_robust.subset import evenly_spaced

# Options of `generate` that not every kind of run has.
GENERATION_OPTIONS = frozenset({"sampler", "stop_at"})


def load_run(run: Path, sampler: str) -> tuple[UNet2DModel, Any]:
    """=>  the network with averaged (EMA) weights in evaluation mode, and a scheduler.

    sampler: "ddim" or "ddpm"; flow matching ignores it. Raises InputError if the run is unfinished.
    """
    if not (run / "unet" / "config.json").exists():
        raise InputError(f"{run} has no finished network (unet/); resume its training first")
    network = UNet2DModel.from_pretrained(run / "unet", use_safetensors=True).eval()
    config = DDPMScheduler.load_config(run / "scheduler")
    flow = config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    scheduler_class = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    return network, sampling_scheduler(scheduler_class.from_config(config), sampler)


def choose_sampler(wanted: str | None, config: dict[str, Any]) -> str:
    """=>  `wanted` (from the command line), or else the sampler of the run.

    Raises InputError if a flow-matching run is given a sampler: it has only one."""
    if wanted is not None and config["parameterization"] == "flow":
        raise InputError(
            f"--sampler is not for flow matching, which has only one sampler; leave out {wanted}"
        )
    return wanted or config["sampler"]


def generate(
    run: Path,
    config: dict[str, Any],
    count: int,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    stop_at: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    offline: bool = False,
) -> Tensor:
    """=>  (count, C, size, size), about [-1, 1].

    config: of the run; it also gives `steps`, `sampler` and `stop_at` if these are None."""
    network, scheduler = load_run(run, choose_sampler(sampler, config))
    return generate_samples(
        network.to(device),
        scheduler,
        count,
        steps=steps or config["sampling_steps"],
        seed=seed,
        device=device,
        stop_at=config.get("stop_at") if stop_at is None else stop_at,
    )


def training_images(
    config: dict[str, Any], *, offline: bool, limit: int | None = None
) -> ContaminatedImages:
    """The data of the run with its contamination. limit: use only the first N files."""
    return ContaminatedImages(
        _open(config, config["data"], offline, limit),
        parse_contamination(config["contamination"]),
        config["seed"],
    )


def original_images(
    config: dict[str, Any], *, offline: bool, data: str | None = None, limit: int | None = None
) -> ContaminatedImages:
    """The data of the run before contamination, or other `data`, at the size of the run."""
    return ContaminatedImages(_open(config, data or config["data"], offline, limit), [], 0)


def _open(config: dict[str, Any], data: str, offline: bool, limit: int | None):
    return open_images(
        data,
        size=config["size"],
        channels=config["channels"],
        limit=limit,
        max_bad_fraction=1.0,  # the run has already reported unreadable files
        offline=offline,
    )


def clean_images(config: dict[str, Any], count: int, *, offline: bool) -> Tensor:
    """At most `count` images that the run is measured against: its reference, or else its data
    before contamination.  =>  (N, C, size, size) in [-1, 1]."""
    reference = config["reference"]
    limit = config["limit"] if reference is None else None
    return original_images(config, offline=offline, data=reference, limit=limit).clean_tensor(count)


def load_auditor(
    run: Path, dataset: ContaminatedImages, device: torch.device | str
) -> tuple[Callable, NoiseProcess]:
    """=>  `denoise_batch`, as `audit_samples` needs it, and the noise process of the network.

    denoise_batch: indices into `dataset`  =>  its samples (B, C, H, W), and denoise(noisy, t)."""
    network, scheduler = load_run(run, "ddim")
    network.to(device)
    channels = network.config.in_channels

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return network(noisy, t).sample[:, :channels]  # the rest is the learned variance, if any

    def denoise_batch(indices: Sequence[int]) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        return dataset.__getitems__(indices)["sample"].to(device), denoise

    return denoise_batch, NoiseProcess.from_scheduler(scheduler)


def audit(
    run: Path, config: dict[str, Any], *, device: str, offline: bool
) -> tuple[Audit, ContaminatedImages]:
    """Score the training images of the run with its network.  =>  the audit, and these images."""
    images = training_images(config, offline=offline, limit=config["limit"])
    denoise_batch, process = load_auditor(run, images, device)
    return audit_images(denoise_batch, process, images, seed=config["seed"]), images


def training_and_held_out(
    config: dict[str, Any], *, originals: bool, offline: bool
) -> tuple[Tensor, Tensor | None]:
    """=>  the M training images, (M, C, H, W), and up to M images that the run's `limit` left out,
    None if it used all. originals: both without the contamination of the run."""
    read = original_images if originals else training_images
    training = read(config, offline=offline, limit=config["limit"])
    if config["limit"] is None:
        return training.sample_tensor(), None
    dataset = read(config, offline=offline)
    names = {training.name(i) for i in range(len(training))}
    unused = [i for i in range(len(dataset)) if dataset.name(i) not in names]
    chosen = [unused[i] for i in evenly_spaced(len(unused), len(training))]
    held_out = dataset.__getitems__(chosen)["sample"] if chosen else None
    return training.sample_tensor(), held_out
