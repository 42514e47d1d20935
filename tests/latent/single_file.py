"""A tiny SD 1.x pipeline under the names that single-file checkpoints use (CompVis's)."""

import re

from diffusers import StableDiffusionPipeline
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCKS = {
    # The tiny U-Net: two levels of one (down) and two (up) layers.
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_weights(pipeline: StableDiffusionPipeline, *, text_encoder: bool) -> dict[str, Tensor]:
    weights = {
        f"model.diffusion_model.{_unet_name(key)}": value
        for key, value in pipeline.unet.state_dict().items()
    }
    if text_encoder:
        weights |= {
            f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
            for key, value in pipeline.text_encoder.state_dict().items()
        }
    return {key: value.clone() for key, value in weights.items()}


def _unet_name(key: str) -> str:
    block = next(block for block in BLOCKS if key.startswith(f"{block}."))
    rest = key.removeprefix(f"{block}.")
    if "resnets" in block:
        rest = re.sub("|".join(RESNET), lambda found: RESNET[found.group()], rest)
    return f"{BLOCKS[block]}.{rest}"
