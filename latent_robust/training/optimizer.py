"""The optimizer, from the configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latent_robust.errors import InputError

from .config import TrainConfig


def make_optimizer(
    config: TrainConfig, parameters: Sequence[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; with `adamw8bit` bitsandbytes', whose moments take 2 bytes a parameter for 8.

    Raises InputError where bitsandbytes, or the CUDA device that it needs, is missing.
    """
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings, fused=device.type in ("cpu", "cuda"))
    if device.type != "cuda":
        raise InputError(f"--optimizer adamw8bit needs a CUDA device, not {device}; use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "--optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw"
        ) from None
    return AdamW8bit(parameters, **settings)
