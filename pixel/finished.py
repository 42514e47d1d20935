"""A finished run of train-pixel: load it, sample from it, let it audit its data.

`generate`, `audit`, `clean_images` and GENERATION_OPTIONS are what the commands ask of every kind
of run (latent_robust/commands/run_kinds.py).
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

# What `generate` understands besides the options of every kind of run.
GENERATION_OPTIONS = frozenset({"sampler", "stop_at"})


def load_run(run: Path, sampler: str) -> tuple[UNet2DModel, Any]:
    """=>  the averaged network, in evaluation mode, and a scheduler for `sampler` (see
    `sampling_scheduler`). Raises InputError if the run has not finished."""
    if not (run / "unet" / "config.json").exists():
        raise InputError(f"{run} has no finished network (unet/); resume its training first")
    network = UNet2DModel.from_pretrained(run / "unet", use_safetensors=True).eval()
    config = DDPMScheduler.load_config(run / "scheduler")
    flow = config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    scheduler_class = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    return network, sampling_scheduler(scheduler_class.from_config(config), sampler)


def choose_sampler(wanted: str | None, config: dict[str, Any]) -> str:
    """wanted: from the command line; by default the run's own. Raises InputError for a sampler
    that flow matching does not have."""
    if wanted is not None and config["parameterization"] == "flow":
        raise InputError("--sampler is not for flow matching, which has one of its own")
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
    """=>  (count, C, size, size), about [-1, 1]. config: the run's; what is None is taken from it."""
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
    """The run's data as it contaminated them. limit: the first N; a run has its own."""
    return ContaminatedImages(
        _open(config, config["data"], offline, limit),
        parse_contamination(config["contamination"]),
        config["seed"],
    )


def original_images(
    config: dict[str, Any], *, offline: bool, data: str | None = None, limit: int | None = None
) -> ContaminatedImages:
    """The run's data before contamination, or other `data`, at the run's size."""
    return ContaminatedImages(_open(config, data or config["data"], offline, limit), [], 0)


def _open(config: dict[str, Any], data: str, offline: bool, limit: int | None):
    return open_images(
        data,
        size=config["size"],
        channels=config["channels"],
        limit=limit,
        max_bad_fraction=1.0,  # the run has reported what it could not read
        offline=offline,
    )


def clean_images(config: dict[str, Any], count: int, *, offline: bool) -> Tensor:
    """What the run is measured against, at most `count`: its reference, or else its data before
    contamination.  =>  (N, C, size, size) in [-1, 1]."""
    reference = config["reference"]
    limit = config["limit"] if reference is None else None
    return original_images(config, offline=offline, data=reference, limit=limit).clean_tensor(count)


def load_auditor(
    run: Path, dataset: ContaminatedImages, device: torch.device | str
) -> tuple[Callable, NoiseProcess]:
    """For `audit_samples`: from indices of a data set to its samples and what the run's network
    predicts for them; and that network's noise process."""
    network, scheduler = load_run(run, "ddim")
    network.to(device)
    channels = network.config.in_channels

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return network(noisy, t).sample[:, :channels]  # without a learned variance

    def denoise_batch(indices: Sequence[int]) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        return dataset.__getitems__(indices)["sample"].to(device), denoise

    return denoise_batch, NoiseProcess.from_scheduler(scheduler)


def audit(
    run: Path, config: dict[str, Any], *, device: str, offline: bool
) -> tuple[Audit, ContaminatedImages]:
    """The run's network judges the images it was trained on.  =>  the audit, and these images."""
    images = training_images(config, offline=offline, limit=config["limit"])
    denoise_batch, process = load_auditor(run, images, device)
    return audit_images(denoise_batch, process, images, seed=config["seed"]), images


def seen_and_unseen(
    config: dict[str, Any], *, originals: bool, offline: bool
) -> tuple[Tensor, Tensor | None]:
    """=>  the training images (M, C, H, W) as the run saw them, or their `originals`; and up to M
    that its `limit` left out, treated alike. None if it left out none."""
    read = original_images if originals else training_images
    seen = read(config, offline=offline, limit=config["limit"])
    if config["limit"] is None:
        return seen.sample_tensor(), None
    everything = read(config, offline=offline)
    names = {seen.name(i) for i in range(len(seen))}
    rest = [i for i in range(len(everything)) if everything.name(i) not in names]
    chosen = [rest[i] for i in evenly_spaced(len(rest), len(seen))]
    return seen.sample_tensor(), everything.__getitems__(chosen)["sample"] if chosen else None
