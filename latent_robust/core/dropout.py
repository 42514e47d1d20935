"""Dropout masks shared between the branches of the regularizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def shared_dropout(denoise: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """`denoise`, every call of which starts from today's random state and leaves it untouched.

    Two calls then draw the same dropout masks (for inputs of one shape). Without this, two forward
    passes of a network with dropout differ by far more than the displacement under study. To be
    made anew in every training step, before the step's first forward pass: what is made once
    replays the same masks for ever.
    """
    devices = [device] if device.type == "cuda" else []
    cpu_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if devices else None

    def replayed(*args, **kwargs) -> Tensor:
        with torch.random.fork_rng(devices):
            torch.set_rng_state(cpu_state)
            if devices:
                torch.cuda.set_rng_state(device_state, device)
            return denoise(*args, **kwargs)

    return replayed
