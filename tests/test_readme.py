"""What README shows must run as it stands."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_lines_for_your_own_loop_run():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    noise_scheduler = DDPMScheduler()
    noise = torch.randn(2, 4, 8, 8)
    t = torch.tensor([10, 900])
    names = {
        "unet": unet,
        "noise_scheduler": noise_scheduler,
        "noisy": noise_scheduler.add_noise(torch.randn(2, 4, 8, 8), noise, t),
        "t": t,
        "text": torch.randn(2, 3, 8),
        "target": noise,
        "F": F,
    }
    exec(code, names)
    plain = F.mse_loss(names["prediction"], noise)
    assert names["loss"] > plain
    names["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in unet.parameters())
