"""A residual MLP with the interface of a diffusers U-Net."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class ResidualMLP(ModelMixin, ConfigMixin):
    """x: (B, in_channels, ...), one point per row; t: (B,)  =>  `.sample`, with the shape of x.

    A point is an image of one pixel (sample_size 1) with one channel per coordinate, so the code
    that samples and attacks images also works on points.
    """

    @register_to_config
    def __init__(self, in_channels: int, width: int = 128, depth: int = 3, sample_size: int = 1):
        super().__init__()
        self.time = nn.Sequential(
            Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0),
            nn.Linear(64, width),
            nn.SiLU(),
        )
        self.first = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.last = nn.Linear(width, in_channels)

    def forward(self, x: Tensor, t: Tensor) -> UNet2DOutput:
        time, hidden = self.time(t), self.first(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, time)
        return UNet2DOutput(sample=self.last(F.silu(hidden)).view_as(x))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(width, width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = self.inner(F.silu(self.norm(hidden))) + self.time(time)
        return hidden + self.outer(F.silu(inner))
