"""The settings of `finetune-latent`. Those shared with `train-pixel` are in
latent_robust/training/config.py."""

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

TAGS_OF_AUDIT = "audit"  # the value of tag_dirt for the words that the audit of the data found


class LatentConfig(TrainConfig):
    """Fine-tune a Stable-Diffusion-style model on captioned images that may be dirty."""

    HELP_FIRST = (
        "lora", "full", "model", "data", "out", "objective", "resolution", "buckets", "steps",
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
        None,
        "train at N x N pixels (default: the resolution of the model)",
        NEED,
        common=True,
        ge=8,
    )
    buckets: bool = setting(
        False,
        "keep aspect ratios: use sizes with the area of N x N pixels, instead of a central square",
        NEED,
        common=True,
    )
    objective: ObjectiveName = setting("robust-random", OBJECTIVE_HELP, NEED, "NAME", common=True)
    steps: int = setting(1000, "optimizer steps", NEED, common=True, ge=1)
    batch_size: int = setting(4, "pairs per process and step", NEED, common=True, ge=1)
    learning_rate: float = setting(1e-4, "peak learning rate of AdamW", NEED, common=True, gt=0)
    limit: int | None = setting(None, "use only the first N image-caption pairs", NEED, ge=1)
    caption_column: str | None = setting(
        None,
        "column of the captions in tables and metadata files (default: text, caption, prompt, ...)",
        NEED,
        "NAME",
    )
    folder_repeats: bool = setting(
        False, "use the images of a folder named 10_NAME ten times per epoch (kohya)", NEED
    )

    # ------------------------------------------------------------ how strong
    auditor: ObjectiveName | Literal["base"] = setting(
        "base",
        "for audited: which model audits the data; base is the model before training, an objective "
        "the model after training with it",
        STRENGTH,
        "NAME",
    )
    caption_noise: float = setting(
        0.0,
        "strength of the noise added to text embeddings, against wrong captions; try 1",
        STRENGTH,
        ge=0,
    )

    check_captions: bool = setting(
        False,
        "for audited: also find captions that do not fit their images, and leave them out",
        STRENGTH,
    )
    tag_dirt: str | None = setting(
        None,
        "for audited and ambient: use dirty images at every noise level, with these words added to "
        "their captions, e.g. 'low quality', instead of only where noise hides the dirt; audit: "
        "the words of --audit",
        STRENGTH,
        "WORDS",
    )

    # ------------------------------------------------------------ LoRA
    rank: int = setting(16, "rank of the LoRA", LORA, common=True, ge=1)
    alpha: float | None = setting(
        None, "scale the LoRA by alpha / rank (default: rank)", LORA, gt=0
    )
    targets: tuple[str, ...] | None = setting(
        None,
        "layers with a LoRA: attention, mlp, or ends of layer names (default: attention)",
        LORA,
        "NAME,...",
    )
    dropout: float = setting(0.0, "dropout probability of the LoRA", LORA, ge=0, lt=1)
    dora: bool = setting(False, "train a weight-decomposed LoRA (DoRA)", LORA)
    text_encoder: bool = setting(False, "also train a LoRA on the CLIP text encoders", LORA)

    # ------------------------------------------------------------ memory and speed
    low_memory: bool = setting(
        False,
        "use gradient checkpointing, bf16, batches of 1 accumulated to batch_size, and 8-bit Adam "
        "if CUDA and bitsandbytes are available",
        MEMORY,
        common=True,
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations: a third more time, far less memory", MEMORY
    )
    cache: bool = setting(
        True, "encode images and captions in every step, instead of once before training", MEMORY
    )
    cache_dir: Path | None = setting(
        None, "directory of the encoded data (default: cache/ in the run directory)", MEMORY, "DIR"
    )
    workers: int = setting(0, "processes that load data; 0 is the main one", MEMORY, ge=0)

    # ------------------------------------------------------------ watching
    prompts: tuple[str, ...] | None = setting(
        None,
        "caption to generate at every checkpoint; may be repeated (default: captions of the data)",
        WATCH,
        "TEXT",
        common=True,
        sentences=True,
    )
    reference: str | None = setting(
        None,
        "clean pairs to measure the loss and the images against; same forms as --data",
        WATCH,
        "DATA",
    )
    held_out: float | None = setting(
        None,
        "share of the pairs held out for the validation loss (default: 0.05; 0 with --reference)",
        WATCH,
        ge=0,
        lt=1,
    )
    samples: int = setting(
        64, "images to generate for the metrics; 0 skips the metrics", WATCH, ge=0
    )
    sampling_steps: int = setting(25, "denoising steps per generated image", WATCH, ge=1)
    guidance: float = setting(5.0, "scale of the classifier-free guidance", WATCH, ge=0)
    features: tuple[str, ...] | None = setting(
        None,
        "feature spaces in which distances are measured, as in train-pixel (default: none; for "
        "scenes pixels and scenes)",
        WATCH,
        "NAME,...",
    )
    clip_score: str | None = setting(
        None,
        "open_clip model that also measures a CLIP score: NAME:FILE or local-dir:DIR",
        WATCH,
        "MODEL",
    )
    weights: Path | None = setting(
        None, "file with the weights of the Inception features", WATCH, "FILE"
    )
    log_every: int = setting(10, "write a row of log.jsonl every N steps", WATCH, ge=1)
    checkpoint_every: int = setting(
        250, "save a checkpoint and previews every N steps", WATCH, ge=1
    )

    # ------------------------------------------------------------ experiments
    caption_dropout: float = setting(
        0.1,
        "share of captions emptied at random, for classifier-free guidance",
        EXPERIMENT,
        ge=0,
        lt=1,
    )
    time_sampling: Literal["auto", "uniform", "logit-normal"] = setting(
        "auto",
        "distribution of the training times; auto is logit-normal for flow models, else uniform",
        EXPERIMENT,
    )
    warmup: int = setting(
        50, "steps of linear warm-up of the learning rate, before its cosine", EXPERIMENT, ge=0
    )
    weight_decay: float = setting(1e-2, "weight decay of AdamW", EXPERIMENT, ge=0)
    ema_decay: float = setting(
        0.995, "decay of the averaged weights; 0 switches the average off", EXPERIMENT, ge=0, lt=1
    )

    @model_validator(mode="after")
    def _fits(self):
        if self.lora == self.full:
            raise ValueError(
                "choose one: --lora trains low-rank adapters, --full the whole denoiser"
            )
        if self.text_encoder and not self.lora:
            raise ValueError("text_encoder trains adapters, so it needs --lora")
        if self.text_encoder and self.caption_noise:
            raise ValueError("caption_noise perturbs fixed embeddings; use it without text_encoder")
        if self.check_captions and not self.facts.needs_audit:
            raise ValueError("check_captions is part of the audit: use objective audited")
        self._check_tags(self.tag_dirt)
        if self.tag_dirt is not None and not self.tag_dirt.strip():
            raise ValueError("tag_dirt needs words, e.g. 'low quality'")
        if self.tag_dirt == TAGS_OF_AUDIT and self.audit is None:
            raise ValueError("tag_dirt audit takes the words of an audit: give --audit FILE too")
        if self.workers and not self.cache and self._on_cuda():
            raise ValueError("workers cannot encode on a GPU; without a cache set workers to 0")
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
            self.low_memory = False  # the settings above replace it
        return self

    def _on_cuda(self) -> bool:
        if self.device == "cpu":
            return False
        import torch  # not at the top: help and errors must not wait for it

        return torch.cuda.is_available()
