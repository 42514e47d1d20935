"""Clean and dirty images as two classes of one network, of which the clean one is generated.

A dirty image is used at every noise level, below its `usable_from` as a dirty one (core/levels.py).
So it teaches what clean and dirty images share, and its dirt goes where nobody asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from latent_robust.core import Levels, NoiseProcess

CLASSES = 2
CLEAN, DIRTY = 0, 1
# The prediction is moved away from the one for dirty images by this much of their difference.
GUIDANCE = 0.25


def tags(process: NoiseProcess, t: Tensor, levels: Levels) -> Tensor:
    """The class of each of B samples at its time, (B,): dirty below `usable_from`."""
    return torch.where(levels.usable_at(*process.alpha_sigma(t)), CLEAN, DIRTY)


class DrawnAsClean(nn.Module):
    """A network with two classes, as one without: it denoises as if every image were clean."""

    def __init__(self, network: UNet2DModel, guidance: float = GUIDANCE):
        super().__init__()
        self.network, self.guidance = network, guidance

    @property
    def config(self) -> Any:
        return self.network.config

    def forward(self, noisy: Tensor, t: Tensor) -> Any:
        count = len(noisy)
        labels = torch.tensor([CLEAN, DIRTY], device=noisy.device).repeat_interleave(count)
        output = self.network(noisy.repeat(2, 1, 1, 1), t.repeat(2), class_labels=labels)
        clean, dirty = output.sample.chunk(2)
        output.sample = clean + self.guidance * (clean - dirty)
        return output


def untagged(network: UNet2DModel) -> nn.Module:
    """The network as `network(noisy, t)`, whether it has classes or not."""
    return network if network.config.num_class_embeds is None else DrawnAsClean(network)
