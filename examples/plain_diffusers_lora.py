#!/usr/bin/env python
"""A plain diffusers training loop for a Stable Diffusion 1.x or 2.x LoRA, plus five lines that make
it robust.

    python examples/plain_diffusers_lora.py MODEL IMAGES OUT

MODEL: a diffusers folder or a Hub name. IMAGES: an "imagefolder" of `datasets`: images, and a
metadata.jsonl with {"file_name": ..., "text": ...}. OUT: folder for
pytorch_lora_weights.safetensors.

The five lines marked `# latent-robust` are the whole change; without them this is the plain loop.
The fourth saves time: it applies the penalty to every fourth image of a batch.
"""

import argparse

import torch
import torch.nn.functional as F
from datasets import load_dataset
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import v2

from latent_robust import EquivariancePenalty, NoiseProcess  # latent-robust

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("images")
parser.add_argument("out")
parser.add_argument("--resolution", type=int, default=512)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=1e-4)
args = parser.parse_args()

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pipeline = StableDiffusionPipeline.from_pretrained(args.model, use_safetensors=True).to(device)
unet, vae = pipeline.unet, pipeline.vae
noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
for part in (unet, vae, pipeline.text_encoder):
    part.requires_grad_(False)
targets = ["to_q", "to_k", "to_v", "to_out.0"]
unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets))
lora = [p for p in unet.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(lora, lr=args.learning_rate)
process = NoiseProcess.from_scheduler(noise_scheduler)  # latent-robust
penalty = EquivariancePenalty(process, attack="random")  # latent-robust

to_sample = v2.Compose(
    [
        v2.RGB(),
        v2.Resize(args.resolution),
        v2.CenterCrop(args.resolution),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),  # to [-1, 1]
    ]
)


def collate(rows):
    return torch.stack([to_sample(r["image"]) for r in rows]), [r["text"] for r in rows]


dataset = load_dataset("imagefolder", data_dir=args.images, split="train")
sampler = RandomSampler(dataset, num_samples=args.steps * args.batch_size)
batches = DataLoader(dataset, args.batch_size, sampler=sampler, collate_fn=collate)


def training_loss(images, captions):
    with torch.no_grad():
        latents = vae.encode(images.to(device)).latent_dist.sample() * vae.config.scaling_factor
        text, _ = pipeline.encode_prompt(captions, device, 1, do_classifier_free_guidance=False)
    noise = torch.randn_like(latents)
    t = torch.randint(noise_scheduler.config.num_train_timesteps, (len(latents),), device=device)
    noisy = noise_scheduler.add_noise(latents, noise, t)
    if noise_scheduler.config.prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(latents, noise, t)
    else:
        target = noise
    prediction = unet(noisy, t, text).sample
    loss = F.mse_loss(prediction, target)
    noisy, t, text, prediction = (x[::4] for x in (noisy, t, text, prediction))  # latent-robust
    loss = loss + penalty(lambda x: unet(x, t, text).sample, noisy, t, prediction)  # latent-robust
    return loss


unet.train()
for images, captions in batches:
    loss = training_loss(images, captions)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lora, 1.0)
    optimizer.step()
    optimizer.zero_grad()

layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
pipeline.save_lora_weights(args.out, unet_lora_layers=layers)
