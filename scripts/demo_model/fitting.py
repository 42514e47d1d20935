"""The training loop of all parts of the demo model: AdamW, one learning rate cycle, EMA."""

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
    preview: Callable[[], str],
    *,
    steps: int,
    rate: float,
) -> None:
    """Train `parameters` in place; afterwards they have their averaged (EMA) values.

    loss_at: step  =>  loss. preview: called ten times, with the averaged parameters in place; the
    text that it returns is printed. rate: peak learning rate."""
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
                text = preview()
            ema.restore(parameters)
            print(f"{step + 1}/{steps}  {speed:.2f} steps/s  loss {loss.item():.4f}  {text}")
    ema.copy_to(parameters)
