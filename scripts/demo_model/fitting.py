"""Training and then averaging a handful of parameters, the same way for all parts of a model."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import Parameter

SEED = 0
EMA_DECAY = 0.999


def fit(
    parameters: list[Parameter],
    loss_at: Callable[[int], Tensor],
    look: Callable[[], str],
    *,
    steps: int,
    rate: float,
) -> None:
    """Leaves the averaged parameters in place. look: called with them, ten times; its answer is
    printed."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.05
    )
    ema = EMAModel(parameters, decay=EMA_DECAY)
    start = time.monotonic()
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(parameters)
        if (step + 1) % (steps // 10) == 0:
            speed = (step + 1) / (time.monotonic() - start)
            ema.store(parameters)
            ema.copy_to(parameters)
            with torch.no_grad():
                seen = look()
            ema.restore(parameters)
            print(f"{step + 1}/{steps}  {speed:.2f} steps/s  loss {loss.item():.4f}  {seen}")
    ema.copy_to(parameters)
