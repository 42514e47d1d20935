"""The one training loop, for pixel and latent space alike. A `Task` says what a batch is and what
the network answers; the objective says what is minimised; everything else happens here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from latent_robust.core import (
    NoiseProcess,
    Objective,
    derive_generator,
    derive_seed,
)

from .batches import StepBatches, loader, without_noisy
from .checkpoint import save_checkpoint
from .config import TrainConfig
from .log import RunLog
from .nonfinite import BadSteps
from .optimizer import make_optimizer
from .signals import StopRequest
from .state import capture


class Task(Protocol):
    """What differs between pixel and latent space."""

    network: nn.Module  # parameters with requires_grad are trained
    dataset: Dataset  # __getitems__(indices) -> {"index": (B,), ...} as one batch
    buckets: Sequence[Sequence[int]]  # indices of samples that may share a batch
    process: NoiseProcess

    def prepare(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Any]:
        """=> sample (B, ...) on the device, and whatever `denoiser` needs besides."""

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """=> t (B,) in the process's unit."""

    def denoiser(self, network: nn.Module, conditions: Any) -> Callable[..., Tensor]:
        """=> denoise(noisy, t, rows) -> prediction, float32."""

    def auxiliary_loss(self, denoise: Callable, sample: Tensor, t: Tensor) -> Tensor | None:
        """A further term (learned variance), from what `denoise` saw in its first call: the batch,
        and after it what the regularizer moved."""

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        """Called with the averaged weights in place, at step 0 as well; draws samples, say."""


class Trainer:
    def __init__(
        self,
        task: Task,
        objective: Objective,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        out: Path,
        levels: Tensor | None = None,
        identity: dict[str, Any] | None = None,
    ):
        """levels: (N,) or (N, C), noise level of each sample, in its units (`ambient`).
        identity: JSON values that a resumed run must share (data fingerprint, settings)."""
        self.task, self.objective, self.config = task, objective, config
        self.accelerator, self.out = accelerator, out
        self.levels, self.identity = levels, identity or {}
        self.buckets = task.buckets
        if config.drop_noisy:
            self.buckets = without_noisy(task.buckets, levels)
        self.step = 0
        trained = {n: p for n, p in task.network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.optimizer = make_optimizer(config, self.parameters, accelerator.device)
        # Not prepared by accelerate, which would step it once per process.
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer,
            num_warmup_steps=min(config.warmup, config.steps // 2),
            num_training_steps=config.steps,
        )
        if config.compile:
            task.network.compile()  # in place: names and types stay as they are
        self.network, self.optimizer = accelerator.prepare(task.network, self.optimizer)
        self.plain_network = accelerator.unwrap_model(self.network)
        # So many steps may lie between two with the regularizer, which alone may be what is bad.
        self.bad_steps = BadSteps(self.optimizer, accelerator, out, max(2, config.penalty_every))
        self.ema = (
            EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
            if config.ema_decay
            else None
        )

    # ------------------------------------------------------------------ the loop

    def train(self) -> bool:
        """Trains to `config.steps`. False when a signal stopped it (after saving)."""
        config, main = self.config, self.accelerator.is_main_process
        log = RunLog(self.out, self.step, self.accelerator)
        samples = config.batch_size * config.gradient_accumulation * self.accelerator.num_processes
        progress = tqdm(
            total=config.steps, initial=self.step, desc=config.objective, disable=not main
        )
        batches = self.batches()
        self.network.train()
        if self._due():  # how it all began; or the run was killed after it saved, before it drew
            self._watch()
        with StopRequest() as stop, progress:
            while self.step < config.steps:
                row = self.train_step(batches)
                self.step += 1
                log.add(row, samples)
                progress.update()
                done, stopping = self.step == config.steps, stop.agreed(self.accelerator)
                written = self.step % config.log_every == 0 or done
                if written or self._due() or stopping:
                    self.bad_steps.settle()
                if written:
                    progress.set_postfix(log.write(self.step))
                if self._due() or stopping:
                    self.save()
                if stopping and not done:
                    return False
                if self._due():
                    self._watch()
        return True

    def _due(self) -> bool:
        """Whether this step ends with a checkpoint."""
        return self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    def _watch(self) -> None:
        self.with_average(lambda network: self.task.on_checkpoint(network, self.step))

    def batches(self) -> Iterator[dict[str, Any]]:
        config, accelerator = self.config, self.accelerator
        batches = StepBatches(
            self.buckets,
            config.batch_size,
            config.seed,
            start=self.step * config.gradient_accumulation,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        )
        pin = accelerator.device.type == "cuda"
        return iter(loader(self.task.dataset, batches, config.workers, pin))

    def train_step(self, batches: Iterator) -> dict[str, Tensor | float]:
        """One optimizer step over `gradient_accumulation` micro-batches."""
        rows, indices = [], []
        for micro in range(self.config.gradient_accumulation):
            batch = next(batches)
            indices.append(batch["index"])
            last = micro == self.config.gradient_accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                rows.append(self._backward(batch, micro))
        row = {key: torch.stack([r[key] for r in rows]).mean() for key in rows[0]}
        row["gradient_norm"] = self.accelerator.clip_grad_norm_(
            self.parameters, self.config.max_gradient_norm
        )
        row["learning_rate"] = self.schedule.get_last_lr()[0]
        losses = [r["loss"] for r in rows]
        if not self.bad_steps.leave_out(self.step, losses, row["gradient_norm"], indices):
            self.optimizer.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row

    def _backward(self, batch: dict[str, Any], micro: int) -> dict[str, Tensor]:
        config = self.config
        where = (config.seed, "step", self.step, micro, self.accelerator.process_index)
        device = self.accelerator.device
        torch.manual_seed(derive_seed(*where, "dropout"))
        generator = derive_generator(*where, device=device)
        sample, conditions = self.task.prepare(batch, generator)
        t = self.task.draw_times(len(sample), generator).to(device)
        noise = torch.randn(sample.shape, generator=generator, device=device)
        levels = self.levels
        if levels is not None:
            levels = levels[batch["index"]].to(device, non_blocking=True)
        denoise = self.task.denoiser(self.network, conditions)
        attacked = self.task.denoiser(self.plain_network, conditions)
        if config.compile:
            attacked = without_weight_gradients(attacked, self.parameters)
        regularize = self.step >= (1 - config.penalty_last) * config.steps
        loss = self.objective(
            denoise,
            sample,
            t,
            noise,
            derive_generator(*where, "perturbation", device=device),
            levels=levels,
            attacked=attacked,
            regularize=regularize,
            step_index=self.step * config.gradient_accumulation + micro,
        )
        total = loss.total
        auxiliary = self.task.auxiliary_loss(denoise, sample, t)
        if auxiliary is not None:
            total = total + auxiliary
        self.accelerator.backward(total / config.gradient_accumulation)
        row = {"loss": total.detach(), "denoising": loss.denoising.detach().mean()}
        if self.objective.penalty is not None and regularize:
            row["penalty"] = loss.penalty.detach().sum() / max(1, loss.penalty.numel())
        return row

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """On every rank; the main process writes."""
        if self.accelerator.is_main_process:
            folder = self.out / "checkpoints"
            save_checkpoint(capture(self), folder, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def with_average(self, use: Callable[[nn.Module], None]) -> None:
        """Call with the averaged weights in place and the network in evaluation mode."""
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.network.eval()
        try:
            with torch.no_grad():
                use(self.plain_network)
        finally:
            self.network.train()
            if self.ema is not None:
                self.ema.restore(self.parameters)


def without_weight_gradients(
    denoise: Callable[..., Tensor], parameters: Sequence[nn.Parameter]
) -> Callable[..., Tensor]:
    """A compiled backward pass, unlike an eager one, makes every gradient that it could be asked
    for, wanted or not: so the parameters want none while the attack's graph is recorded."""

    def frozen(*args) -> Tensor:
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            return denoise(*args)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    return frozen
