"""Estimate the memory of a training step before it runs.

One step of the real objective runs on fake tensors, which have shapes but no content, while the
bytes of all live tensors are counted. So the estimate includes gradient checkpointing and the
regularizer's branches, works for every family, and takes seconds. It does not include what
libraries allocate for themselves (cuDNN workspaces, fragmentation): expect about a tenth more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from latent_robust.core import Levels, NoiseProcess, Objective
from latent_robust.errors import InputError
from latent_robust.training.objectives import build_objective
from latent_robust.training.precision import HALF

from .base.components import Components
from .base.identity import configuration_of
from .config import LatentConfig
from .memoize import memoize_json

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes. weights: of the denoiser, and of text encoders that are trained; state: gradients,
    optimizer moments and averaged weights of the trained parameters; step: the peak of a step
    beyond these two."""

    weights: int
    state: int
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.state + self.step

    def __str__(self) -> str:
        unit, name = (GIB, "GiB") if self.total >= 0.1 * GIB else (2**20, "MiB")
        parts = {"weights": self.weights, "optimizer": self.state, "activations": self.step}
        listed = ", ".join(f"{part} {size / unit:.2f}" for part, size in parts.items())
        return f"{self.total / unit:.2f} {name} ({listed})"


def estimate_memory(components: Components, config: LatentConfig, item: dict[str, Any]) -> Memory:
    """The memory of one training step. Adapters must have been added before.

    item: one encoded pair from the cache, for the shapes of a batch. The activations of text
    encoders that are trained are not counted."""
    network = components.network
    peak = _peak_of_step(components, config, item)
    kept = [network, *(components.text_encoders.values() if config.text_encoder else ())]
    trained = [p for part in kept for p in part.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    moments = 2 if config.optimizer == "adamw8bit" else 8  # bytes per value
    average = 4 if config.ema_decay else 0
    return Memory(
        weights=sum(t.nbytes for part in kept for t in (*part.parameters(), *part.buffers())),
        state=sum(p.nbytes + (moments + average) * p.numel() for p in trained),
        # The gradients that remain after the step are part of `state`.
        step=max(0, peak - gradients),
    )


def _peak_of_step(components: Components, config: LatentConfig, item: dict[str, Any]) -> int:
    """The largest number of bytes that exist at once in a step, besides weights and state."""
    network, process = components.network, components.process
    device = item["mean"].device
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, device:
        parameters = {
            f"network.{name}": torch.empty(p.shape, dtype=p.dtype).requires_grad_(p.requires_grad)
            for name, p in network.named_parameters()
        }
        buffers = {
            f"network.{name}": torch.empty(b.shape, dtype=b.dtype)
            for name, b in network.named_buffers()
        }
        batch = {
            key: value.new_empty(config.batch_size, *value.shape[1:])
            for key, value in {"sample": item["mean"], "size": item["size"], **item["text"]}.items()
        }
        batch["t"] = torch.empty(config.batch_size, dtype=process.times.dtype)
        levels = torch.empty(config.batch_size)  # also the samples' usable_from
    # A fake time has no value, so its alpha and sigma cannot be looked up; `levels` replaces them.
    fake_process = NoiseProcess(
        lambda t: (levels[: len(t)],) * 2, process.parameterization, process.times
    )
    step = _Step(components, build_objective(config, fake_process))
    half = HALF.get(config.mixed_precision)
    on_cuda = half is not None and network.device.type == "cuda"
    with (
        fake,
        torch.autocast(device.type, half, enabled=half is not None),
        norms_in_float32() if on_cuda else nullcontext(),
        PeakBytes() as watch,
    ):
        functional_call(step, {**parameters, **buffers}, (batch, levels, parameters))
    return watch.peak


# The settings that change the memory of a step without changing the network's parameters.
STEP_SETTINGS = (
    "objective", "weight", "penalty_fraction", "penalty_every", "attack", "attack_steps",
    "batch_size", "mixed_precision", "gradient_checkpointing", "optimizer", "ema_decay",
    "text_encoder", "dropout",
)  # fmt: skip


def cached_estimate(
    folder: Path | None, components: Components, config: LatentConfig, item: dict[str, Any]
) -> Memory:
    """`estimate_memory`, or its stored result for the same step, because an estimate takes as long
    as many steps. folder: the cache's, where memory.json holds the results; None for no cache."""
    shapes = {key: list(value.shape[1:]) for key, value in item["text"].items()}
    inputs = [
        [torch.__version__, diffusers.__version__, peft.__version__],
        [components.network.device.type, list(item["mean"].shape[1:]), shapes],
        {name: getattr(config, name) for name in STEP_SETTINGS},
        *(_describe(part) for part in (components.network, *components.text_encoders.values())),
    ]
    file = None if folder is None else folder / "memory.json"
    return Memory(
        **memoize_json(file, inputs, lambda: asdict(estimate_memory(components, config, item)))
    )


def _describe(part: nn.Module) -> list:
    """Class, configuration and parameters of a module, as JSON."""
    tensors = [
        [name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in part.named_parameters()
    ]
    return [type(part).__name__, configuration_of(part), tensors]


def require_memory(estimate: Memory, device: torch.device, config: LatentConfig) -> None:
    """InputError with remedies if the free memory is too small. The weights must be loaded."""
    free, needed = free_memory(device), estimate.total - estimate.weights
    if free is None or needed <= free:
        return
    remedies = ["--gradient-checkpointing"] if not config.gradient_checkpointing else []
    if config.batch_size > 1:
        remedies.append("a smaller --batch-size with --gradient-accumulation")
    if config.mixed_precision == "no":
        remedies.append("--mixed-precision bf16")
    if config.full:
        remedies.append("--lora instead of --full")
    remedies.append("a smaller --resolution")
    raise InputError(
        f"a training step takes about {estimate}. The weights are already loaded; the rest needs "
        f"{needed / GIB:.2f} GiB, but only {free / GIB:.2f} GiB are free on {device}. "
        f"Use --low-memory, or: {', '.join(remedies)}"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes; None on devices that do not report it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # torch's cache of freed blocks counts as free
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available
    return None


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Make norms return float32 inside, as CUDA's autocast does. The CPU's autocast, under which
    fake tensors run, does not. In a U-Net this is up to a third more activations."""
    norms = {name: getattr(functional, name) for name in ("group_norm", "layer_norm")}

    def upcast(norm: Callable[..., Tensor], *args, **options) -> Tensor:
        args, options = tree_map_only(Tensor, Tensor.float, (args, options))
        with torch.autocast(args[0].device.type, enabled=False):
            return norm(*args, **options)

    try:
        for name, norm in norms.items():
            setattr(functional, name, partial(upcast, norm))
        yield
    finally:
        for name, norm in norms.items():
            setattr(functional, name, norm)


class _Step(nn.Module):
    """Forward and backward in one call, because checkpointing calls the network in both."""

    def __init__(self, components: Components, objective: Objective):
        super().__init__()
        self.network, self.family = components.network, components.family
        self.objective = objective

    def forward(self, batch: dict[str, Tensor], levels: Tensor, parameters: dict) -> None:
        sample, sizes, t = (batch.pop(key) for key in ("sample", "size", "t"))
        denoise = self.family.denoiser(self.network, batch, sizes)
        loss = self.objective(denoise, sample, t, torch.empty_like(sample), levels=Levels(levels))
        trained = [p for p in parameters.values() if p.requires_grad]
        torch.autograd.grad(loss.total, trained, allow_unused=True)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors created while it is active. alive: those that exist now;
    peak: the most that existed at once."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.alive -= size
