"""Dropout masks shared between the two branches of the penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def shared_dropout(
    denoise: Callable[..., Tensor], device: torch.device | str
) -> Callable[..., Tensor]:
    """=>  `denoise`, whose later calls reuse the dropout masks of its first call.

    For inputs of one shape, on `device`. Without shared masks, two forward passes of a network with
    dropout differ by far more than the displacement that the penalty measures.

    Call this in every training step: one wrapper repeats the same masks for ever. Only the first
    call advances the global random state.
    """
    first_state: list[Tensor] | None = None
    mask_device = torch.device(device)

    def replayed(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal first_state
        if first_state is None:
            first_state = _random_state(mask_device)
            return denoise(*args, **kwargs)
        current_state = _random_state(mask_device)
        _set_random_state(first_state, mask_device)
        try:
            return denoise(*args, **kwargs)
        finally:
            _set_random_state(current_state, mask_device)

    return replayed


def _random_state(device: torch.device) -> list[Tensor]:
    """State of the CPU's generator, then of the device's if dropout draws its masks there."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
