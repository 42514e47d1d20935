"""Steps whose loss or gradient is not finite: left out, named, and too many of them are the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from latent_robust.errors import Diverged

logger = logging.getLogger(__name__)
MAX_BAD_STEPS = 5

# fp16's scaler halves its scale, 65,536 at first, whenever a gradient is not finite.
LEAST_SCALE = 2**-16


@dataclass(frozen=True)
class _Step:
    """bad: (2,), 0 or 1, the same on all ranks: whether a loss is bad, or the gradient; losses: of
    this rank's micro-batches; indices: of the samples in them."""

    number: int
    bad: Tensor
    losses: Sequence[Tensor]
    indices: Sequence[Tensor]


class BadSteps:
    """Whether a step is bad stays on the device, where a fused optimizer leaves it out: a host that
    asked would wait for it, and the device for the host after. `settle` asks, for all steps since
    it was last called."""

    def __init__(
        self,
        optimizer: AcceleratedOptimizer,
        accelerator: Accelerator,
        out: Path,
        recovered_after: int,
    ):
        """recovered_after: good steps in a row, until bad ones before them no longer count."""
        self.optimizer, self.accelerator, self.out = optimizer, accelerator, out
        self.recovered_after = recovered_after
        self.at_once = accelerator.device.type == "cpu"  # nobody waits
        self.waiting: list[_Step] = []
        self.bad = self.good = 0  # in close succession

    def leave_out(
        self, number: int, losses: Sequence[Tensor], norm: Tensor, indices: Sequence[Tensor]
    ) -> bool:
        """Whether step `number` must not be taken; False as well where the optimizer knows.

        losses: of the micro-batches, (); norm: of the gradient, (); indices: of the samples."""
        scaler, optimizer = self.accelerator.scaler, self.optimizer.optimizer
        bad = torch.stack([~torch.stack([*losses]).isfinite().all(), ~norm.isfinite()]).float()
        if scaler:
            bad[1] = 0  # its own business: it skips the step itself while it looks for its scale
        step = _Step(number, self.accelerator.reduce(bad, "sum").clamp_max(1), losses, indices)
        self.waiting.append(step)
        if self.at_once:
            self.settle()
        if scaler:
            return False  # it must be asked, or it never finds its scale
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = step.bad.amax()
            return False
        return bool(step.bad.any())

    def settle(self) -> None:
        """Names the bad ones among the steps since it was last called. Diverged if there are
        MAX_BAD_STEPS in close succession, or if fp16 has no scale at which gradients are finite."""
        steps, self.waiting = self.waiting, []
        flags = torch.stack([step.bad for step in steps]).tolist() if steps else []
        for step, (bad_loss, bad_gradient) in zip(steps, flags, strict=True):
            if bad_loss or bad_gradient:
                self.bad, self.good = self.bad + 1, 0
                self._name(step, bad_loss)
            else:
                self.good += 1
                if self.good >= self.recovered_after:
                    self.bad = 0
            if self.bad >= MAX_BAD_STEPS:
                self._give_up(
                    f"{self.bad} steps in close succession had a non-finite loss or gradient", step
                )
        scaler = self.accelerator.scaler
        if steps and scaler and scaler.get_scale() < LEAST_SCALE:
            self._give_up("no gradient has been finite, at any of fp16's scales", steps[-1])

    def _name(self, step: _Step, bad_loss: float) -> None:
        """Each rank its own samples, where they are what is bad, or may be."""
        finite = [loss.isfinite() for loss in step.losses]
        culprits = [
            i.tolist()
            for i, good in zip(step.indices, finite, strict=True)
            if not (bad_loss and good)
        ]
        if culprits:
            logger.warning(
                "step %d skipped: non-finite loss or gradient; indices of its samples (names: "
                "manifest.jsonl): %s",
                step.number,
                culprits,
            )

    def _give_up(self, what: str, last: _Step) -> None:
        raise Diverged(
            f"{what} (last step: {last.number}). The last good checkpoint is in "
            f"{self.out / 'checkpoints'}. Look at the samples named above, or start again with "
            "a lower --learning-rate and another --out"
        )
