"""Which device to train on."""

from __future__ import annotations

import torch

from latent_robust.errors import InputError


def choose_device(name: str) -> str:
    """name: "auto" or a device.  =>  "cuda", "mps" or "cpu". InputError if it is not available."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name} is not available here; use --device auto")
    return name
