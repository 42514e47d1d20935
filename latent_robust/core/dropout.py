"""Dropout masks shared between the branches of the regularizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def shared_dropout(
    denoise: Callable[..., Tensor], device: torch.device | str
) -> Callable[..., Tensor]:
    """`denoise`, of which every call draws the dropout masks of the first one.

    (For inputs of one shape.) Without this, two forward passes of a network with dropout differ by
    far more than the displacement under study. To be made anew in every training step: what is made
    once replays the same masks for ever. Only the first call moves the random state on.
    """
    at_first, device = None, torch.device(device)

    def replayed(*args, **kwargs) -> Tensor:
        nonlocal at_first
        if at_first is None:
            at_first = _random_state(device)
            return denoise(*args, **kwargs)
        untouched = _random_state(device)
        _set_random_state(at_first, device)
        try:
            return denoise(*args, **kwargs)
        finally:
            _set_random_state(untouched, device)

    return replayed


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of the device where masks are drawn there."""
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
