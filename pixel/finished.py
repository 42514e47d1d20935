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
from torch import Tensor, nn

from latent_robust.audit import Audit, audit_by_trusted, audit_images, noisy_views
from latent_robust.core import NoiseProcess
from latent_robust.data import ContaminatedImages
from latent_robust.errors import InputError
from latent_robust.evaluation.sampling import generate_samples, sampling_scheduler
from latent_robust.subset import evenly_spaced

from .data import contaminated_images
from .data import open_part as _open
from .tagged import untagged

# Options of `generate` that not every kind of run has.
GENERATION_OPTIONS = frozenset({"sampler", "stop_at"})

ALL_FILES = {"max_bad_fraction": 1.0}  # the run has already reported unreadable files


def load_run(run: Path, sampler: str) -> tuple[nn.Module, Any]:
    """=>  the network with averaged (EMA) weights in evaluation mode, and a scheduler.

    sampler: "ddim" or "ddpm"; flow matching ignores it. Raises InputError if the run is unfinished.
    """
    if not (run / "unet" / "config.json").exists():
        raise InputError(f"{run} has no finished network (unet/); resume its training first")
    network = UNet2DModel.from_pretrained(run / "unet", use_safetensors=True).eval()
    config = DDPMScheduler.load_config(run / "scheduler")
    flow = config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    scheduler_class = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    return untagged(network), sampling_scheduler(scheduler_class.from_config(config), sampler)


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
    return contaminated_images({**config, **ALL_FILES, "limit": limit, "offline": offline})


def original_images(
    config: dict[str, Any], *, offline: bool, data: str | None = None, limit: int | None = None
) -> ContaminatedImages:
    """The data of the run before contamination, or other `data`, at the size of the run."""
    images = _open({**config, **ALL_FILES, "offline": offline}, data or config["data"], limit)
    return ContaminatedImages(images, [], 0)


def clean_images(config: dict[str, Any], count: int, *, offline: bool) -> Tensor:
    """At most `count` images that the run is measured against: its reference, or else its data
    before contamination.  =>  (N, C, size, size) in [-1, 1]."""
    reference = config["reference"]
    limit = config["limit"] if reference is None else None
    return original_images(config, offline=offline, data=reference, limit=limit).clean_tensor(count)


def audit_with(
    run: Path, dataset: ContaminatedImages, *, device: torch.device | str, seed: int
) -> Audit:
    """Score the images with the network of a finished run, and judge them by the trusted ones."""
    network, scheduler = load_run(run, "ddim")
    network.to(device)
    process = NoiseProcess.from_scheduler(scheduler)
    channels = network.config.in_channels

    def load(indices: Sequence[int] | Tensor) -> Tensor:
        return dataset.__getitems__(indices)["sample"]

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return network(noisy, t).sample[:, :channels]  # the rest is the learned variance, if any

    def denoise_batch(indices: Sequence[int]) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        return load(indices).to(device), denoise

    audit = audit_images(denoise_batch, process, dataset, seed=seed)
    if not dataset.trusted:
        return audit
    view = noisy_views(denoise_batch, process, network, seed)
    return audit_by_trusted(audit, dataset.trusted, view, load, seed)


def audit(
    run: Path, config: dict[str, Any], *, device: str, offline: bool
) -> tuple[Audit, ContaminatedImages]:
    """Score the training images of the run with its network.  =>  the audit, and these images."""
    images = training_images(config, offline=offline, limit=config["limit"])
    return audit_with(run, images, device=device, seed=config["seed"]), images


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
