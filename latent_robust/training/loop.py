"""The training loop, for pixel and latent space.

A `Task` says what a batch is and how the network is called. The objective says what is minimised.
Everything else happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from latent_robust.core import Levels, NoiseProcess, Objective, derive_generator, derive_seed

from .batches import StepBatches, batches_for, loader
from .checkpoint import save_checkpoint
from .config import TrainConfig
from .log import RunLog
from .nonfinite import BadSteps
from .optimizer import make_optimizer
from .signals import StopRequest
from .state import capture


class Task(Protocol):
    """What differs between pixel and latent space."""

    network: nn.Module  # the parameters with requires_grad are trained
    dataset: Dataset  # __getitems__(indices) -> {"index": (B,), ...} as one batch
    buckets: Sequence[Sequence[int]]  # indices of samples that may share a batch
    process: NoiseProcess

    def prepare(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Any]:
        """=>  sample (B, ...) on the device; the conditions, whatever else `denoiser` needs."""

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """=>  t (B,), in the unit of the process."""

    def denoiser(self, network: nn.Module, conditions: Any) -> Callable[..., Tensor]:
        """=>  denoise(noisy, t, rows) => prediction, float32."""

    def auxiliary_loss(self, denoise: Callable, sample: Tensor, t: Tensor) -> Tensor | None:
        """=>  a further term of the loss, or None; e.g. the learned variance.

        It uses the first call of `denoise`: its rows are the batch, then the perturbed rows."""

    def on_checkpoint(self, network: nn.Module, step: int) -> None:
        """Called with the averaged weights, also at step 0; e.g. to generate previews."""


class Trainer:
    def __init__(
        self,
        task: Task,
        objective: Objective,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        out: Path,
        levels: Levels | None = None,
        identity: dict[str, Any] | None = None,
    ):
        """levels: of each sample in the dataset, for objectives that need them.
        identity: JSON values that a resumed run must share (settings, data fingerprint)."""
        self.task, self.objective, self.config = task, objective, config
        self.accelerator, self.out = accelerator, out
        self.levels = levels.clean_only() if levels is not None and config.drop_noisy else levels
        self.identity = identity or {}
        self.plan = self._plan()
        self.step = 0
        trained = {n: p for n, p in task.network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        optimizer = make_optimizer(config, self.parameters, accelerator.device)
        # Not prepared by accelerate, which would step it once per process.
        self.schedule = get_cosine_schedule_with_warmup(
            optimizer,
            num_warmup_steps=min(config.warmup, config.steps // 2),
            num_training_steps=config.steps,
        )
        if config.compile:
            task.network.compile()  # in place: names and types stay as they are
        self.optimizer: AcceleratedOptimizer
        self.network, self.optimizer = accelerator.prepare(task.network, optimizer)
        self.plain_network = accelerator.unwrap_model(self.network)
        # The penalty alone may be non-finite, and it is computed in every N-th step only.
        _, penalty_every = config.penalty_share
        self.bad_steps = BadSteps(self.optimizer, accelerator, out, max(2, penalty_every))
        self.ema = (
            EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
            if config.ema_decay
            else None
        )

    # ------------------------------------------------------------------ the loop

    def train(self) -> bool:
        """Train up to `config.steps`. False if a signal stopped it (after saving)."""
        config, main = self.config, self.accelerator.is_main_process
        log = RunLog(self.out, self.step, self.accelerator)
        samples = config.batch_size * config.gradient_accumulation * self.accelerator.num_processes
        progress = tqdm(
            total=config.steps, initial=self.step, desc=config.objective, disable=not main
        )
        batches = self.batches()
        self.network.train()
        if self._due():  # the untrained network, or a run that was killed before its previews
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
        """Whether a checkpoint and its previews are due after `self.step` steps."""
        return self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    def _watch(self) -> None:
        """Call the task's `on_checkpoint`."""
        self.with_average(lambda network: self.task.on_checkpoint(network, self.step))

    def batches(self) -> Iterator[dict[str, Any]]:
        """This rank's batches, from the current step on, without end."""
        config = self.config
        self.plan.start = self.step * config.gradient_accumulation
        pin = self.accelerator.device.type == "cuda"
        return iter(loader(self.task.dataset, self.plan, config.workers, pin))

    def _plan(self) -> StepBatches:
        """Which samples form which batch and, where it matters to samples, which times."""
        config, task, ranks = self.config, self.task, self.accelerator.num_processes
        settings = {
            "size": config.batch_size,
            "seed": config.seed,
            "rank": self.accelerator.process_index,
            "ranks": ranks,
        }
        if self.levels is None:
            return StepBatches(task.buckets, **settings)
        draws = config.steps * config.gradient_accumulation * config.batch_size * ranks
        return batches_for(
            self.levels,
            draws,
            task.buckets,
            process=task.process,
            draw_times=task.draw_times,
            **settings,
        )

    def train_step(self, batches: Iterator) -> dict[str, Tensor | float]:
        """One optimizer step over `gradient_accumulation` micro-batches.  =>  a row for the log."""
        rows, indices = [], []
        for micro in range(self.config.gradient_accumulation):
            batch = next(batches)
            indices.append(batch["index"])
            last = micro == self.config.gradient_accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                rows.append(self._backward(batch, micro))
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_gradient_norm)
        row = {
            **{key: torch.stack([r[key] for r in rows]).mean() for key in rows[0]},
            "gradient_norm": norm,
            "learning_rate": self.schedule.get_last_lr()[0],
        }
        losses = [r["loss"] for r in rows]
        if not self.bad_steps.leave_out(self.step, losses, norm, indices):
            self.optimizer.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row

    def _backward(self, batch: dict[str, Any], micro: int) -> dict[str, Tensor]:
        """Add the gradients of micro-batch number `micro`.  =>  its means: (), on the device."""
        config = self.config
        stream = (config.seed, "step", self.step, micro, self.accelerator.process_index)
        device = self.accelerator.device
        torch.manual_seed(derive_seed(*stream, "dropout"))
        generator = derive_generator(*stream, device=device)
        sample, conditions = self.task.prepare(batch, generator)
        number = self.step * config.gradient_accumulation + micro
        t = self.plan.times(number)
        if t is None:
            t = self.task.draw_times(len(sample), generator)
        t = t.to(device, non_blocking=True)
        noise = torch.randn(sample.shape, generator=generator, device=device)
        levels = self.levels
        if levels is not None:
            levels = levels[batch["index"]].to(device)
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
            derive_generator(*stream, "perturbation", device=device),
            levels=levels,
            attacked=attacked,
            regularize=regularize,
            step_index=number,
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
        """Write a checkpoint. Called on all ranks; the main process writes."""
        if self.accelerator.is_main_process:
            folder = self.out / "checkpoints"
            save_checkpoint(capture(self), folder, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def with_average(self, use: Callable[[nn.Module], None]) -> None:
        """use(network): called with the averaged weights, in evaluation mode, without gradient."""
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
    """=>  `denoise`, whose graph has no gradients of the parameters; for the attack.

    A compiled backward pass, unlike an eager one, computes every gradient that it could, needed or
    not. So requires_grad of the parameters is off while the attack's graph is recorded.
    """

    def frozen(*args: Any) -> Tensor:
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            return denoise(*args)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    return frozen
