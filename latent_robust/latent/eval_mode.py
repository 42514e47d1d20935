"""Evaluate networks in the middle of training without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside. Afterwards each module is in its previous mode."""
    was_training = [
        (module, module.training) for network in networks for module in network.modules()
    ]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in was_training:
            module.training = training
