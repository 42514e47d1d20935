"""Two numbers for each sample: how noisy it is, and from which noise level on it may be used.

| sample | level | usable_from |
|---|---|---|
| clean | 0 | 0 |
| with Gaussian noise of standard deviation tau | tau | tau |
| with other dirt, which noise of level f hides | 0 | f |
| another kind of image, which no noise makes usable | 0 | infinity |

The second number is that of Daras et al. 2025, "Ambient Diffusion Omni".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """The two numbers of N samples, in the samples' units.

    level: (N,) or (N, C), >= 0, standard deviation of the Gaussian noise in each sample, or in each
        of its channels.
    usable_from: (N,), the least s = sigma / alpha at which a sample is used, infinity for never.
        At least the largest level: lower values are raised to it, and None means just that.
    trusted: (N,), bool, samples that the user vouches for; None: no sample. Training draws them
        more often where they are few (training/batches.py).
    """

    level: Tensor
    usable_from: Tensor
    trusted: Tensor

    def __init__(
        self, level: Tensor, usable_from: Tensor | None = None, trusted: Tensor | None = None
    ):
        least = level.reshape(len(level), -1).amax(1)
        if usable_from is not None:
            least = torch.maximum(usable_from.to(least), least)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "usable_from", least)
        none = torch.zeros(len(level), dtype=torch.bool, device=level.device)
        object.__setattr__(self, "trusted", none if trusted is None else trusted)

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, rows: Any) -> Levels:
        """The numbers of some samples: anything that indexes a tensor's first dimension."""
        return Levels(self.level[rows], self.usable_from[rows], self.trusted[rows])

    def to(self, device: torch.device) -> Levels:
        parts = (self.level, self.usable_from, self.trusted)
        return Levels(*(part.to(device, non_blocking=True) for part in parts))

    @classmethod
    def never_for(cls, left_out: Tensor) -> Levels:
        """A filter: samples that are clean, or never used. left_out: (N,), bool."""
        return cls(torch.zeros(len(left_out)), torch.where(left_out, torch.inf, 0.0))

    def usable_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N,), bool: which samples may be used at their noise level s = sigma / alpha, (N,)."""
        return sigma >= alpha * self.usable_from.to(alpha)

    def own_noise(self) -> Levels:
        """The same, but only its own noise restricts at which levels a sample is used."""
        return Levels(self.level, trusted=self.trusted)

    def clean_only(self) -> Levels:
        """The same, but samples that are not usable at every noise level never are."""
        dirty = self.usable_from > 0
        return Levels(self.level, self.usable_from.masked_fill(dirty, torch.inf), self.trusted)
