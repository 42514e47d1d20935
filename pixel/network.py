"""The U-Net and the schedulers of diffusers, built from the configuration."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from torch import nn

from latent_robust.training.continuation import refuse_another

from .config import PixelConfig
from .finished import load_run
from .tagged import CLASSES, DrawnAsClean

# Settings that fix the network and its target. --init needs a run with the same ones.
NETWORK_FIELDS = (
    "size", "channels", "block_out_channels", "layers_per_block", "attention_levels",
    "attention_head_dim", "norm_groups", "scale_shift", "learned_variance", "parameterization",
    "noise_steps", "beta_schedule",
)  # fmt: skip


def build_network(config: PixelConfig) -> UNet2DModel:
    """A network with a learned variance has 2 C output channels: the mean, then the variance. One
    with classes begins by treating both alike."""
    levels = range(len(config.block_out_channels))
    attention = ["Attn" if i in config.attention_levels else "" for i in levels]
    network = UNet2DModel(
        sample_size=config.size,
        in_channels=config.channels,
        out_channels=config.channels * (2 if config.learned_variance else 1),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(f"{a}DownBlock2D" for a in attention),
        up_block_types=tuple(f"{a}UpBlock2D" for a in reversed(attention)),
        add_attention=bool(config.attention_levels),
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        dropout=config.dropout,
        num_class_embeds=CLASSES if config.tag_dirt else None,
    )
    if config.tag_dirt:
        nn.init.zeros_(network.class_embedding.weight)
    return network


def start_from(network: UNet2DModel, config: PixelConfig, run: Path) -> None:
    """Load the averaged weights of the finished run into `network`.

    Raises InputError if `run` is not a finished run, or if its network has other settings."""
    other, _ = load_run(run, "ddim")
    refuse_another(run, config, NETWORK_FIELDS)
    state = (other.network if isinstance(other, DrawnAsClean) else other).state_dict()
    own = network.state_dict()
    # A network without classes leaves those of the other as they begin.
    network.load_state_dict({name: state.get(name, own[name]) for name in own})


def training_scheduler(config: PixelConfig) -> SchedulerMixin:
    """Defines the noise process. Saved with the weights, for sampling with diffusers."""
    if config.parameterization == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.noise_steps)
    return DDPMScheduler(
        num_train_timesteps=config.noise_steps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.parameterization,
        # Without clipping, a few percent of the images leave [-1, 1], where the network was never
        # trained. The cosine schedule with epsilon needs it: at its last step alpha is 1e-5, and
        # the error of the prediction is divided by alpha.
        clip_sample=config.clip is not None,
        clip_sample_range=config.clip or 1.0,
        variance_type="learned_range" if config.learned_variance else "fixed_small",
        timestep_spacing="trailing",
    )
