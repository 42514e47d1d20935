"""The precision in which the parts of a model are loaded for training."""

from __future__ import annotations

import torch

from latent_robust.training.precision import HALF


def load_dtypes(lora: bool, mixed_precision: str) -> dict[str, torch.dtype]:
    """=>  `dtype` and `text_dtype` of `load_components`. Frozen weights are in `mixed_precision`; a
    network that is fully fine-tuned is in float32."""
    frozen = HALF.get(mixed_precision, torch.float32)
    return {"dtype": frozen if lora else torch.float32, "text_dtype": frozen}
