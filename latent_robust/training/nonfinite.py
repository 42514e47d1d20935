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


@dataclass(frozen=True)
class _Step:
    number: int
    bad: Tensor  # (), 0 or 1, on the device
    losses: Sequence[Tensor]  # of the micro-batches
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
        step = _Step(number, self._is_bad(losses, norm), losses, indices)
        self.waiting.append(step)
        if self.at_once:
            self.settle()
        if self.accelerator.scaler:
            return False  # it looks for itself, and must be asked, or it never finds its scale
        if self.optimizer.optimizer.defaults.get("fused"):
            self.optimizer.optimizer.found_inf = step.bad
            return False
        return bool(step.bad)

    def settle(self) -> None:
        """Names the bad ones among the steps since it was last called. Diverged if there are
        MAX_BAD_STEPS in close succession."""
        steps, self.waiting = self.waiting, []
        flags = torch.stack([step.bad for step in steps]).tolist() if steps else []
        for step, bad in zip(steps, flags, strict=True):
            if bad:
                self._name(step)
            else:
                self.good += 1
                if self.good >= self.recovered_after:
                    self.bad = 0

    def _is_bad(self, losses: Sequence[Tensor], norm: Tensor) -> Tensor:
        """The same on all ranks. Under fp16 an infinite gradient is the scaler's business: it skips
        the step itself while it looks for its scale."""
        watched = torch.stack([*losses, *([] if self.accelerator.scaler else [norm])])
        bad = (~watched.isfinite()).any().float()
        return self.accelerator.reduce(bad, "sum").clamp_max(1)

    def _name(self, step: _Step) -> None:
        culprits = [
            i.tolist()
            for loss, i in zip(step.losses, step.indices, strict=True)
            if not loss.isfinite()
        ]
        self.bad, self.good = self.bad + 1, 0
        logger.warning(
            "step %d skipped: non-finite loss or gradient; indices of its samples (names: "
            "manifest.jsonl): %s",
            step.number,
            culprits or [i.tolist() for i in step.indices],
        )
        if self.bad >= MAX_BAD_STEPS:
            raise Diverged(
                f"{self.bad} steps in close succession had a non-finite loss or gradient "
                f"(last: {step.number}). The last good checkpoint is in "
                f"{self.out / 'checkpoints'}. Look at the samples named above, or start again with "
                "a lower --learning-rate and another --out"
            )
