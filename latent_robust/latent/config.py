"""The settings that only latent-space runs have. Shared ones: latent_robust/training/config.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from latent_robust.data.sources.spec import PAIR_FORMS
from latent_robust.training.config import (
    EXPERIMENT,
    LORA,
    MEMORY,
    NEED,
    OBJECTIVE_HELP,
    STRENGTH,
    WATCH,
    ObjectiveName,
    TrainConfig,
)
from latent_robust.training.options import setting


class LatentConfig(TrainConfig):
    """Fine-tune a Stable-Diffusion-style model on captioned images that may be dirty."""

    HELP_FIRST = (
        "lora", "full", "model", "data", "out", "objective", "resolution", "steps",
    )  # fmt: skip

    # ------------------------------------------------------------ what you need
    lora: bool = setting(False, "train low-rank adapters (LoRA)", NEED, common=True)
    full: bool = setting(False, "train the whole denoiser", NEED, common=True)
    model: str = setting(
        "demo",
        "what to fine-tune: a diffusers folder, a .safetensors file, a Hub name, or demo",
        NEED,
        "MODEL",
        common=True,
    )
    data: str = setting(
        "scenes",
        f"captioned images: a folder, {', '.join(PAIR_FORMS.values())}",
        NEED,
        "DATA",
        common=True,
    )
    resolution: int | None = setting(
        None, "pixels a side (default: the model's own)", NEED, common=True, ge=8
    )
    buckets: bool = setting(
        False, "keep aspect ratios; else the central square is used", NEED, common=True
    )
    objective: ObjectiveName = setting("robust-random", OBJECTIVE_HELP, NEED, "NAME", common=True)
    steps: int = setting(1000, "optimizer steps", NEED, common=True, ge=1)
    batch_size: int = setting(4, "pairs per process and accumulation step", NEED, common=True, ge=1)
    learning_rate: float = setting(1e-4, "peak learning rate of AdamW", NEED, common=True, gt=0)
    limit: int | None = setting(None, "use only the first N pairs", NEED, ge=1)
    caption_column: str | None = setting(
        None, "column of the captions in tables and metadata files", NEED, "NAME"
    )
    folder_repeats: bool = setting(False, "a folder 10_name counts ten times (kohya)", NEED)

    # ------------------------------------------------------------ how strong
    auditor: ObjectiveName | Literal["base"] = setting(
        "base",
        "for audited: who audits the data, the model as it is (base) or after training with an "
        "objective",
        STRENGTH,
        "NAME",
    )
    caption_noise: float = setting(
        0.0, "perturb the text embeddings, against wrong captions; 1 is a start", STRENGTH, ge=0
    )

    # ------------------------------------------------------------ LoRA
    rank: int = setting(16, "rank of the adapters", LORA, common=True, ge=1)
    alpha: float | None = setting(
        None, "adapters are scaled by alpha / rank (default: rank)", LORA, common=True, gt=0
    )
    targets: tuple[str, ...] | None = setting(
        None,
        "layers that get adapters: attention, mlp, or ends of layer names (default: attention)",
        LORA,
        "NAME,...",
        common=True,
    )
    dropout: float = setting(0.0, "dropout of the adapters", LORA, ge=0, lt=1)
    dora: bool = setting(False, "weight-decomposed adapters (DoRA)", LORA)
    text_encoder: bool = setting(False, "adapters on the CLIP text encoders as well", LORA)

    # ------------------------------------------------------------ memory and speed
    low_memory: bool = setting(
        False,
        "gradient checkpointing, bf16, batches of 1 that accumulate to batch_size, and 8-bit Adam "
        "where there is CUDA and bitsandbytes",
        MEMORY,
        common=True,
    )
    gradient_checkpointing: bool = setting(False, "a third more time, far less memory", MEMORY)
    cache: bool = setting(True, "do not encode images and captions before training", MEMORY)
    cache_dir: Path | None = setting(
        None, "where encoded data are kept (default: cache/ in the run directory)", MEMORY, "DIR"
    )
    workers: int = setting(0, "processes that load data", MEMORY, ge=0)

    # ------------------------------------------------------------ watching
    prompts: tuple[str, ...] | None = setting(
        None,
        "generate this at every checkpoint; may be repeated (default: captions of the data)",
        WATCH,
        "TEXT",
        common=True,
        sentences=True,
    )
    reference: str | None = setting(
        None, "clean pairs to validate and measure against, as --data", WATCH, "DATA"
    )
    held_out: float | None = setting(
        None,
        "share of the pairs kept for the validation loss (default: 0.05; 0 with --reference)",
        WATCH,
        ge=0,
        lt=1,
    )
    samples: int = setting(64, "images generated for the metrics; 0 for none", WATCH, ge=0)
    sampling_steps: int = setting(25, "steps of the sampler", WATCH, ge=1)
    guidance: float = setting(5.0, "classifier-free guidance when generating", WATCH, ge=0)
    features: tuple[str, ...] | None = setting(
        None,
        "feature spaces of the distances, as in train-pixel (default: none; for the demo's data "
        "pixels and scenes)",
        WATCH,
        "NAME,...",
    )
    clip_score: str | None = setting(
        None,
        "also measure a CLIP score, with an open_clip model: NAME:FILE or local-dir:DIR",
        WATCH,
        "MODEL",
    )
    weights: Path | None = setting(None, "weights file of the Inception features", WATCH, "FILE")
    log_every: int = setting(10, "steps between rows of log.jsonl", WATCH, ge=1)
    checkpoint_every: int = setting(250, "steps between checkpoints and previews", WATCH, ge=1)

    # ------------------------------------------------------------ experiments
    caption_dropout: float = setting(
        0.1, "share of captions emptied, for classifier-free guidance", EXPERIMENT, ge=0, lt=1
    )
    time_sampling: Literal["auto", "uniform", "logit-normal"] = setting(
        "auto", "training times; auto is logit-normal for flow models, else uniform", EXPERIMENT
    )
    warmup: int = setting(50, "steps of linear warm-up before the cosine", EXPERIMENT, ge=0)
    weight_decay: float = setting(1e-2, "weight decay of AdamW", EXPERIMENT, ge=0)
    ema_decay: float = setting(
        0.995, "decay of the averaged weights; 0 switches the average off", EXPERIMENT, ge=0, lt=1
    )

    @model_validator(mode="after")
    def _fits(self):
        if self.lora == self.full:
            raise ValueError("choose one: --lora trains low-rank adapters, --full the denoiser")
        if self.text_encoder and not self.lora:
            raise ValueError("text_encoder trains adapters: it needs --lora")
        if self.text_encoder and self.caption_noise:
            raise ValueError("caption_noise perturbs fixed embeddings: not with text_encoder")
        if self.workers and not self.cache and self._on_cuda():
            raise ValueError("workers cannot encode on a GPU: without cache it needs workers 0")
        self._refuse_dropout_of_a_part(self.dropout)
        if self.alpha is None:
            self.alpha = float(self.rank)
        # Resolved here, so that adding a reference later does not change what a run trains on.
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
            if find_spec("bitsandbytes") and self._on_cuda():
                self.optimizer = "adamw8bit"
            self.low_memory = False  # it has become these settings
        return self

    def _on_cuda(self) -> bool:
        if self.device == "cpu":
            return False
        import torch  # not at the top: help and errors must not wait for it

        return torch.cuda.is_available()
