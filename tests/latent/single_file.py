"""A tiny SD 1.x pipeline under the names that single-file checkpoints use (CompVis's)."""

import re

from diffusers import StableDiffusionPipeline
from torch import Tensor

UNET = {
    # Two levels of one (down) and two (up) layers.
    r"time_embedding\.linear_1": "time_embed.0",
    r"time_embedding\.linear_2": "time_embed.2",
    r"conv_in": "input_blocks.0.0",
    r"down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"down_blocks\.0\.attentions\.0": "input_blocks.1.1",
    r"down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"mid_block\.resnets\.0": "middle_block.0",
    r"mid_block\.attentions\.0": "middle_block.1",
    r"mid_block\.resnets\.1": "middle_block.2",
    r"up_blocks\.0\.resnets\.0": "output_blocks.0.0",
    r"up_blocks\.0\.resnets\.1": "output_blocks.1.0",
    r"up_blocks\.0\.upsamplers\.0": "output_blocks.1.1",
    r"up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"up_blocks\.1\.attentions\.0": "output_blocks.2.1",
    r"up_blocks\.1\.resnets\.1": "output_blocks.3.0",
    r"up_blocks\.1\.attentions\.1": "output_blocks.3.1",
    r"conv_norm_out": "out.0",
    r"conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    r"down_blocks\.(\d)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    # The original counts the decoder's levels from the finest.
    r"up_blocks\.0\.resnets": "up.1.block",
    r"up_blocks\.1\.resnets": "up.0.block",
    r"up_blocks\.0\.upsamplers\.0": "up.1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.to_([qkv])": r"attn_1.\1",
    r"attn_1\.to_out\.0": "attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
}


def original_weights(pipeline: StableDiffusionPipeline, *parts: str) -> dict[str, Tensor]:
    """parts: of "unet", "vae", "text_encoder", those that the file holds."""
    weights = {}
    for part in parts:
        for key, value in getattr(pipeline, part).state_dict().items():
            name, value = {"unet": _unet, "vae": _vae, "text_encoder": _clip}[part](key, value)
            weights[name] = value.clone()
    return weights


def _unet(key: str, value: Tensor) -> tuple[str, Tensor]:
    block, name = next(
        (block, name) for block, name in UNET.items() if re.match(rf"{block}\.", key)
    )
    rest = re.sub(rf"^{block}\.", "", key)
    if "resnets" in block:
        rest = re.sub("|".join(UNET_RESNET), lambda found: UNET_RESNET[found.group()], rest)
    return f"model.diffusion_model.{name}.{rest}", value


def _vae(key: str, value: Tensor) -> tuple[str, Tensor]:
    for pattern, name in VAE.items():
        key = re.sub(pattern, name, key)
    if "attn_1" in key and value.ndim == 2:
        value = value[:, :, None, None]  # the original's attention is made of 1x1 convolutions
    return f"first_stage_model.{key}", value


def _clip(key: str, value: Tensor) -> tuple[str, Tensor]:
    return f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}", value
