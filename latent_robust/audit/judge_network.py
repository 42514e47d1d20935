"""The judge of details: a small convolutional network with pooled statistics (see judge.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_robust.core import derive_generator, derive_seed

from .judge import NOISE_LEVELS, VIEWS, folds

Load = Callable[[Tensor], Tensor]  # indices (B,) => samples (B, C, H, W), about [-1, 1]

FOLDS = 3
STEPS = 600
BATCH = 96
CROP = 32  # pixels; of larger samples the network sees one crop a view
LOWEST, HIGHEST = 0.05, 5.0  # noise levels in training
WIDTH, TIME = 24, 16
DATA_STD = 0.7  # of images in [-1, 1]: the input's scale at noise s is sqrt(DATA_STD^2 + s^2)


class _Network(nn.Module):
    """Noisy samples (B, C, H, W) and their noise levels (B,)  =>  scores (B,)."""

    def __init__(self, channels: int):
        super().__init__()
        widths = (channels, WIDTH, WIDTH, WIDTH)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=1 + (number == 2))
            for number, (a, b) in enumerate(pairwise(widths))
        )
        self.times = nn.ModuleList(nn.Linear(TIME, WIDTH) for _ in self.convolutions)
        self.head = nn.Linear(2 * WIDTH + TIME, 1)

    def forward(self, noisy: Tensor, noise_level: Tensor) -> Tensor:
        time = _embedding(noise_level)
        h = noisy / (DATA_STD**2 + noise_level**2).sqrt().view(-1, 1, 1, 1)
        for convolution, shift in zip(self.convolutions, self.times, strict=True):
            h = F.silu(convolution(h) + shift(time)[:, :, None, None])
        h = h.flatten(2)
        pooled = torch.cat([h.mean(2), h.std(2, correction=0), time], 1)
        return self.head(pooled)[:, 0]


def _embedding(noise_level: Tensor) -> Tensor:
    angles = noise_level.log()[:, None] * torch.logspace(-0.2, 0.8, TIME // 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


@dataclass
class DetailJudge:
    """load: the samples. count: how many there are."""

    load: Load
    count: int
    seed: int = 0
    _fitted: list[_Network] = field(default_factory=list)
    _weights: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the fit
    _fold: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def __call__(self, weights: Tensor) -> Tensor:
        everything = torch.arange(self.count)
        return torch.stack(
            [self.at(level, weights, everything).mean(0) for level in NOISE_LEVELS]
        ).mean(0)

    @torch.no_grad()
    def at(self, noise_level: float, weights: Tensor, indices: Tensor) -> Tensor:
        """Scores (V, n) of noisy views of these samples, each by a network that has not seen it."""
        if not torch.equal(self._weights, weights):
            self._fold = folds(weights == 1, self.seed, FOLDS)
            with torch.enable_grad():
                self._fitted = [self._fit(weights, number) for number in range(FOLDS)]
            self._weights = weights.clone()
        scores = torch.empty(VIEWS, len(indices))
        for number in range(FOLDS):
            places = (self._fold[indices] == number).nonzero().flatten()
            for rows in places.split(256):
                for view in range(VIEWS):
                    generator = derive_generator(self.seed, "view", view, int(rows[0]))
                    noisy, level = _noisy(self.load(indices[rows]), noise_level, generator)
                    scores[view, rows] = self._fitted[number](noisy, level)
        return scores

    def _fit(self, weights: Tensor, number: int) -> _Network:
        seen = self._fold != number
        generator = derive_generator(self.seed, "judge", number)
        torch.manual_seed(derive_seed(self.seed, "judge", number))
        network = _Network(self.load(torch.tensor([0])).shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
        half = BATCH // 2
        target = torch.cat([torch.ones(half), torch.zeros(half)])
        for _ in range(STEPS):
            rows = torch.cat(
                [
                    torch.multinomial(share * seen, half, True, generator=generator)
                    for share in (weights, 1 - weights)
                ]
            )
            # Both halves have the same noise levels.
            u = torch.rand(half, generator=generator).square().repeat(2)
            level = (log(LOWEST) + u * (log(HIGHEST) - log(LOWEST))).exp()
            noisy, level = _noisy(self.load(rows), level, generator)
            loss = F.binary_cross_entropy_with_logits(network(noisy, level), 0.98 * target + 0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.eval()


def _noisy(samples: Tensor, level: Tensor | float, generator) -> tuple[Tensor, Tensor]:
    """A random crop with noise.  =>  (B, C, h, w), noise levels (B,)."""
    height, width = samples.shape[-2:]
    top, left = (
        int(torch.randint(max(1, side - CROP + 1), (), generator=generator))
        for side in (height, width)
    )
    crop = samples[..., top : top + CROP, left : left + CROP]
    level = torch.as_tensor(level, dtype=torch.float32).expand(len(crop))
    noise = torch.randn(crop.shape, generator=generator)
    return crop + level.view(-1, 1, 1, 1) * noise, level
