"""Steps with a non-finite loss or gradient: skip them, name their samples, stop after too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from latent_robust.errors import Diverged

logger = logging.getLogger(__name__)
MAX_BAD_STEPS = 5

# fp16's scaler starts at 65,536 and halves its scale whenever a gradient is not finite.
LEAST_SCALE = 2**-16


@dataclass(frozen=True)
class _Step:
    """bad: (2,), 0 or 1, equal on all ranks: a loss is non-finite, the gradient is non-finite.
    losses: of this rank's micro-batches. indices: of the samples in each of them."""

    number: int
    bad: Tensor
    losses: Sequence[Tensor]
    indices: Sequence[Tensor]


class BadSteps:
    """Skips bad steps, that is steps with a non-finite loss or gradient.

    Whether a step is bad stays on the device, where a fused optimizer skips it. If the host asked
    at every step, it would wait for the device, and then the device for the host. So the host reads
    all steps since the last time in `settle`.
    """

    def __init__(
        self,
        optimizer: AcceleratedOptimizer,
        accelerator: Accelerator,
        out: Path,
        recovered_after: int,
    ):
        """recovered_after: after this many good steps in a row, earlier bad ones do not count."""
        self.optimizer, self.accelerator, self.out = optimizer, accelerator, out
        self.recovered_after = recovered_after
        self.at_once = accelerator.device.type == "cpu"  # reading costs no synchronisation there
        self.unread: list[_Step] = []
        self.recent_bad = self.good_in_a_row = 0

    def leave_out(
        self, number: int, losses: Sequence[Tensor], norm: Tensor, indices: Sequence[Tensor]
    ) -> bool:
        """Whether the caller must skip step `number`. False if the optimizer skips it by itself.

        losses: () each, of the micro-batches. norm: (), of the gradient. indices: (B,) each, of
        the samples in the micro-batches.
        """
        scaler, optimizer = self.accelerator.scaler, self.optimizer.optimizer
        bad = torch.stack([~torch.stack([*losses]).isfinite().all(), ~norm.isfinite()]).float()
        if scaler:
            bad[1] = 0  # fp16's scaler skips such a step itself while it searches for its scale
        step = _Step(number, self.accelerator.reduce(bad, "sum").clamp_max(1), losses, indices)
        self.unread.append(step)
        if self.at_once:
            self.settle()
        if scaler:
            return False  # the scaler needs every step, or it never finds its scale
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = step.bad.amax()
            return False
        return bool(step.bad.any())

    def settle(self) -> None:
        """Read all steps since the last call, and log the samples of bad ones.

        Raises Diverged after MAX_BAD_STEPS in close succession, or if fp16 has no scale at which
        gradients are finite.
        """
        steps, self.unread = self.unread, []
        flags = torch.stack([step.bad for step in steps]).tolist() if steps else []
        for step, (bad_loss, bad_gradient) in zip(steps, flags, strict=True):
            if bad_loss or bad_gradient:
                self.recent_bad, self.good_in_a_row = self.recent_bad + 1, 0
                self._log_samples(step, bad_loss)
            else:
                self.good_in_a_row += 1
                if self.good_in_a_row >= self.recovered_after:
                    self.recent_bad = 0
            if self.recent_bad >= MAX_BAD_STEPS:
                self._give_up(
                    f"{self.recent_bad} steps in close succession had a non-finite loss or "
                    "gradient",
                    step,
                )
        scaler = self.accelerator.scaler
        if steps and scaler and scaler.get_scale() < LEAST_SCALE:
            self._give_up("the gradient was not finite at any scale of fp16", steps[-1])

    def _log_samples(self, step: _Step, bad_loss: float) -> None:
        """Each rank logs its own samples: those of a non-finite loss. If only the gradient is
        non-finite, all of the step's."""
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

    def _give_up(self, reason: str, last: _Step) -> NoReturn:
        raise Diverged(
            f"{reason} (last step: {last.number}). The last good checkpoint is in "
            f"{self.out / 'checkpoints'}. Check the samples named above, or start again with "
            "a lower --learning-rate and another --out"
        )
