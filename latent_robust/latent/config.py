"""The settings that only latent-space runs have. Shared ones: latent_robust/training/config.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from latent_robust.training.config import HALF, ObjectiveName, TrainConfig
from latent_robust.training.options import WHOLE


class LatentConfig(TrainConfig):
    """Fine-tune a Stable-Diffusion-style model on captioned pictures that may be dirty."""

    # what is trained
    lora: bool = Field(False, description="train low-rank adapters")
    full: bool = Field(False, description="train the whole denoiser")
    model: str = Field(
        "demo", description="a diffusers folder, a .safetensors file, a hub name, or demo"
    )
    rank: int = Field(16, ge=1, description="of the adapters")
    alpha: float | None = Field(None, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapters")
    targets: tuple[str, ...] | None = Field(
        None, description="ends of the names of the layers that get adapters (default: attention)"
    )
    dora: bool = Field(False, description="weight-decomposed adapters (DoRA)")
    text_encoder: bool = Field(False, description="adapters on the CLIP text encoders as well")

    # the pairs
    data: str = Field(
        "scenes", description="DIR, parquet:FILE, wds:TARS, hf:NAME[:SPLIT], or scenes (the demo's)"
    )
    caption_column: str | None = Field(None, description="of tables and metadata files")
    folder_repeats: bool = Field(False, description="a folder 10_name counts ten times")
    resolution: int | None = Field(None, ge=8, description="pixels (default: the model's own)")
    buckets: bool = Field(False, description="keep aspect ratios; else the central square")
    caption_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of captions emptied, for classifier-free guidance"
    )
    caption_noise: float = Field(
        0.0, ge=0, description="perturbation of the text embeddings, against wrong captions"
    )
    cache: bool = Field(True, description="encode pictures and captions once, before training")
    cache_dir: Path | None = Field(None, description="default: cache/ in the run directory")

    # the objective
    objective: ObjectiveName = Field("robust-random", description="what is minimised")
    judge: ObjectiveName | Literal["base"] = Field(
        "base",
        description="who audits the data, for audited: the model as it is, or after training with "
        "an objective",
    )
    time_sampling: Literal["auto", "uniform", "logit-normal"] = Field(
        "auto", description="auto: logit-normal for flow models, uniform for the others"
    )

    # the optimizer
    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(4, ge=1, description="per process and accumulation step")
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(50, ge=0, description="steps of linear warm-up before the cosine")
    weight_decay: float = Field(1e-2, ge=0)
    ema_decay: float = Field(0.995, ge=0, lt=1, description="0 switches the average off")

    # memory
    gradient_checkpointing: bool = Field(False, description="a third more time, far less memory")
    low_memory: bool = Field(
        False,
        description="gradient checkpointing, bf16, batches of 1 that accumulate to batch_size, and "
        "8-bit Adam where there is CUDA and bitsandbytes",
    )

    # watching
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(250, ge=1)
    prompts: Annotated[tuple[str, ...] | None, WHOLE] = Field(
        None,
        description="drawn at every checkpoint; may be repeated (default: captions of the data)",
    )
    held_out: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the pairs kept for the validation loss (default: 0.05, but 0 beside "
        "a reference, which serves instead)",
    )
    reference: str | None = Field(
        None, description="clean pairs to validate and measure against, as --data"
    )
    sampling_steps: int = Field(25, ge=1)
    guidance: float = Field(5.0, ge=0, description="classifier-free guidance when drawing")
    samples: int = Field(64, ge=0, description="pictures drawn for the metrics; 0 for none")
    features: tuple[str, ...] | None = Field(
        None,
        description="spaces in which distances are measured, as in train-pixel (default: "
        "pixels and scenes for the demo's data, none for others)",
    )
    clip_score: str | None = Field(
        None, description="model of the CLIP score: NAME:FILE or local-dir:DIR of open_clip"
    )
    weights: Path | None = Field(None, description="weights file of the inception features")

    @model_validator(mode="after")
    def _fits(self):
        if self.lora == self.full:
            raise ValueError("choose one: --lora trains low-rank adapters, --full the denoiser")
        if self.text_encoder and not self.lora:
            raise ValueError("text_encoder trains adapters: it needs --lora")
        if self.text_encoder and self.caption_noise:
            raise ValueError("caption_noise perturbs fixed embeddings: not with text_encoder")
        if self.workers and not self.cache and self.device != "cpu" and torch.cuda.is_available():
            raise ValueError("workers cannot encode on a GPU: without cache it needs workers 0")
        self._refuse_dropout_of_a_part(self.dropout)
        if self.alpha is None:
            self.alpha = float(self.rank)
        # Resolved here, so that a reference that is added later leaves a run what it trains on.
        if self.held_out is None:
            self.held_out = 0.05 if self.reference is None else 0.0
        if self.features is None:
            self.features = ("pixels", "scenes") if self.data == "scenes" else ()
        if self.low_memory:
            self.gradient_checkpointing = True
            self.gradient_accumulation *= self.batch_size
            self.batch_size = 1
            if self.mixed_precision == "no":
                self.mixed_precision = "bf16"
            if self.device != "cpu" and torch.cuda.is_available() and find_spec("bitsandbytes"):
                self.optimizer = "adamw8bit"
            self.low_memory = False  # it has become these settings
        return self


def dtypes(lora: bool, mixed_precision: str) -> dict[str, torch.dtype]:
    """=>  `dtype` and `text_dtype` of `load_components`: frozen weights are in the precision of
    training, what is trained whole stays in float32."""
    frozen = HALF.get(mixed_precision, torch.float32)
    return {"dtype": frozen if lora else torch.float32, "text_dtype": frozen}
