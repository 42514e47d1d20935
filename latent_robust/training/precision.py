"""The dtypes of half precision, by the names that the setting `mixed_precision` has."""

from __future__ import annotations

import torch

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
