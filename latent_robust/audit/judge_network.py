"""The judge of details: a small convolutional network with pooled statistics (see judge.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from latent_robust.core import derive_generator, derive_seed
from latent_robust.subset import evenly_spaced

from .judge import VIEWS, at_each_level, folds

# indices (B,) => B samples (C, H, W), about [-1, 1]; of one size, or CROP pixels a side at least
Load = Callable[[Tensor], Iterable[Tensor]]

FOLDS = 3
STEPS = 300  # twice as many judge no better
BATCH = 96
CROP = 32  # pixels; of larger samples the network sees crops
MOST = 2048  # other samples that it is fitted to
SCORED = 256  # samples that are scored at once
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
    """load: the samples. trusted: (N,), bool, which of them the user vouches for.

    It is fitted to the trusted and at most MOST other samples, whose crops are kept in memory.
    """

    load: Load
    trusted: Tensor
    seed: int = 0
    _fitted: list[_Network] = field(default_factory=list)
    _weights: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the fit

    def __post_init__(self) -> None:
        others = (~self.trusted).nonzero().flatten()
        others = others[evenly_spaced(len(others), MOST)]
        self._rows = torch.cat([self.trusted.nonzero().flatten(), others]).sort().values
        self._fold = folds(self.trusted, self.seed, FOLDS)
        self._crops = self._load_crops(self._rows)  # (rows, K, C, h, w)

    def __call__(self, weights: Tensor) -> Tensor:
        return at_each_level(self.at, weights).mean(0)

    @torch.no_grad()
    def at(self, noise_level: float, weights: Tensor, indices: Tensor) -> Tensor:
        """Scores (V, n) of noisy views of these samples, each by a network that has not seen it."""
        if not torch.equal(self._weights, weights):
            with torch.enable_grad():
                self._fitted = [self._fit(weights, number) for number in range(FOLDS)]
            self._weights = weights.clone()
        scores = torch.empty(VIEWS, len(indices))
        for number in range(FOLDS):
            places = (self._fold[indices] == number).nonzero().flatten()
            for rows in places.split(SCORED):
                views = self._crops_of(indices[rows])  # (B, K, C, h, w)
                level = torch.full((views[:, :, 0, 0, 0].numel(),), noise_level)
                for view in range(VIEWS):
                    generator = derive_generator(self.seed, "view", view, int(rows[0]))
                    noisy = _noisy(views.flatten(0, 1), level, generator)
                    each = self._fitted[number](noisy, level).view(views.shape[:2])
                    scores[view, rows] = each.mean(1)
        return scores

    def _load_crops(self, rows: Tensor) -> Tensor:
        return torch.stack([crops(sample) for part in rows.split(64) for sample in self.load(part)])

    def _crops_of(self, rows: Tensor) -> Tensor:
        """Of many samples, each round and level loads them again."""
        if len(self._rows) == len(self.trusted):
            return self._crops[rows]
        return self._load_crops(rows)

    def _fit(self, weights: Tensor, number: int) -> _Network:
        seen = (self._fold != number)[self._rows]
        weights = weights[self._rows]
        generator = derive_generator(self.seed, "judge", number)
        torch.manual_seed(derive_seed(self.seed, "judge", number))
        network = _Network(self._crops.shape[2])
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
        half = BATCH // 2
        target = torch.cat([torch.ones(half), torch.zeros(half)])
        shares = [share * seen for share in (weights, 1 - weights)]
        label = f"judging details, part {number + 1} of {FOLDS}"
        for _ in tqdm(range(STEPS), label, unit="step", delay=2, leave=False):
            rows = torch.cat(
                [torch.multinomial(share, half, True, generator=generator) for share in shares]
            )
            crop = torch.randint(self._crops.shape[1], rows.shape, generator=generator)
            # Both halves have the same noise levels.
            u = torch.rand(half, generator=generator).square().repeat(2)
            level = (log(LOWEST) + u * (log(HIGHEST) - log(LOWEST))).exp()
            noisy = _noisy(self._crops[rows, crop], level, generator)
            loss = F.binary_cross_entropy_with_logits(network(noisy, level), 0.98 * target + 0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.eval()


def crops(sample: Tensor) -> Tensor:
    """(C, H, W)  =>  (K, C, h, w), h, w <= CROP: four crops, or a small image itself."""
    places = [
        [(side - CROP) // 4, 3 * (side - CROP) // 4] if side > CROP else [0]
        for side in sample.shape[-2:]
    ]
    parts = [sample[:, top : top + CROP, left : left + CROP] for top, left in product(*places)]
    return torch.stack(parts)


def _noisy(samples: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """samples: (B, C, h, w); level: (B,)."""
    noise = torch.randn(samples.shape, generator=generator)
    return samples + level.view(-1, 1, 1, 1) * noise
