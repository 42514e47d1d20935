"""The dtypes of mixed precision, by the names that `mixed_precision` has."""

from __future__ import annotations

import torch

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
