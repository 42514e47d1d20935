"""The optimizer of a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latent_robust.errors import InputError

from .config import TrainConfig


def make_optimizer(
    config: TrainConfig, parameters: Sequence[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, or with `adamw8bit` that of bitsandbytes: 2 bytes of moments per parameter, not 8.

    Raises InputError if bitsandbytes, or the CUDA device that it needs, is missing.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        fused = device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    if device.type != "cuda":
        raise InputError(f"--optimizer adamw8bit needs a CUDA device, got {device}; use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "--optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw"
        ) from None
    return AdamW8bit(parameters, lr=rate, weight_decay=decay)
