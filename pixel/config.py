"""The settings that only pixel-space runs have. Shared ones: latent_robust/training/config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from latent_robust.data.sources.spec import IMAGE_FORMS
from latent_robust.training.config import (
    EXPERIMENT,
    NEED,
    OBJECTIVE_HELP,
    STRENGTH,
    WATCH,
    ObjectiveName,
    TrainConfig,
)
from latent_robust.training.options import setting

# The U-Net's width at each resolution, by the largest size that it is meant for.
WIDTHS = {8: (16, 32), 16: (16, 32, 64), 32: (64, 128, 128), 64: (64, 128, 192, 256)}


class PixelConfig(TrainConfig):
    """Train a pixel-space diffusion model on images that may be dirty."""

    HELP_FIRST = ("data", "size", "channels", "out", "objective", "steps")

    data: str = setting(
        "digits",
        f"training images: a folder, {', '.join(IMAGE_FORMS.values())}",
        NEED,
        "DATA",
        common=True,
    )
    objective: ObjectiveName = setting(
        "robust-adversarial", OBJECTIVE_HELP, NEED, "NAME", common=True
    )
    size: int = setting(
        8, "images are cropped and resized to N x N pixels", NEED, common=True, ge=4
    )
    channels: Literal[1, 3] = setting(1, "gray or RGB", NEED, common=True)
    rounds: int = setting(
        1, "for audited: audit and train N times, each time with the last network", STRENGTH, ge=1
    )

    # ------------------------------------------------------------ watching
    reference: str | None = setting(
        None,
        "clean images to measure against, as --data (default: the data before --contamination)",
        WATCH,
        "DATA",
        common=True,
    )
    samples: int = setting(
        1797, "images generated for the metrics; 0 for none", WATCH, common=True, ge=0
    )
    sampler: Literal["ddim", "ddpm"] = setting("ddim", "deterministic or ancestral", WATCH)
    sampling_steps: int = setting(50, "steps of the sampler", WATCH, ge=1)
    clip: float | None = setting(
        1.0,
        "keep the sampler's clean estimate within +-X; null: do not, as for flow matching",
        WATCH,
        gt=0,
    )
    stop_at: float | None = setting(
        None,
        "end the sampler at this noise level with its clean estimate there (default: where no image "
        "is clean, their least level; else not at all)",
        WATCH,
        gt=0,
    )
    features: tuple[str, ...] | None = setting(
        None,
        "feature spaces of the distances: pixels, digits, fashion-mnist, inception, dinov2:DIR, "
        "open_clip:NAME:FILE, FILE.safetensors (default: pixels; for digits also digits)",
        WATCH,
        "NAME,...",
    )
    weights: Path | None = setting(None, "weights file of the Inception features", WATCH, "FILE")

    # ------------------------------------------------------------ experiments
    flip: bool = setting(False, "mirror half of the images at random", EXPERIMENT)
    block_out_channels: tuple[int, ...] | None = setting(
        None, "U-Net: channels at each resolution (default: by size)", EXPERIMENT, "N,..."
    )
    layers_per_block: int = setting(1, "U-Net: residual blocks per resolution", EXPERIMENT, ge=1)
    attention_levels: tuple[int, ...] = setting(
        (), "U-Net: resolutions with attention, counted from 0", EXPERIMENT, "N,..."
    )
    attention_head_dim: int = setting(16, "U-Net: channels per attention head", EXPERIMENT, ge=1)
    norm_groups: int = setting(8, "U-Net: groups of the group norms", EXPERIMENT, ge=1)
    scale_shift: bool = setting(
        False, "U-Net: time enters as scale and shift (Improved DDPM)", EXPERIMENT
    )
    dropout: float = setting(0.0, "U-Net: dropout", EXPERIMENT, ge=0, lt=1)
    learned_variance: bool = setting(
        False, "learn the variance as well: L_hybrid of Improved DDPM", EXPERIMENT
    )
    parameterization: Literal["epsilon", "v_prediction", "sample", "flow"] = setting(
        "epsilon", "what the network predicts", EXPERIMENT
    )
    noise_steps: int = setting(1000, "steps of the noise process", EXPERIMENT, ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = setting(
        "linear", "schedule of the noise process", EXPERIMENT
    )

    @field_validator("channels", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """The command line gives texts, which are none of the literals."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @property
    def auditor_run(self) -> str:
        """With several rounds the auditor is itself an audited run."""
        return self.objective if self.rounds > 1 and self.facts.needs_audit else self.auditor

    @model_validator(mode="after")
    def _fits(self):
        if self.block_out_channels is None:
            widths = next((w for size, w in WIDTHS.items() if self.size <= size), WIDTHS[64])
            while self.size % 2 ** (len(widths) - 1):
                widths = widths[:-1]
            self.block_out_channels = widths
        halvings = 2 ** (len(self.block_out_channels) - 1)
        if self.size % halvings:
            raise ValueError(
                f"size {self.size} is not divisible by {halvings}, which "
                f"{len(self.block_out_channels)} resolutions need"
            )
        for width in self.block_out_channels:
            if width % self.norm_groups:
                raise ValueError(
                    f"block_out_channels {width} is not a multiple of norm_groups "
                    f"{self.norm_groups}"
                )
        levels = len(self.block_out_channels)
        if not all(0 <= level < levels for level in self.attention_levels):
            raise ValueError(
                f"attention_levels {self.attention_levels}: these count the {levels} resolutions "
                "from 0, they are not pixels"
            )
        if self.sampling_steps > self.noise_steps:
            raise ValueError(
                f"sampling_steps {self.sampling_steps} is more than noise_steps {self.noise_steps}"
            )
        if self.rounds > 1 and not any(facts.needs_audit for facts in self.trained):
            raise ValueError(f"rounds {self.rounds} is for the objective audited")
        if self.parameterization == "sample" and not all(f.equivariant for f in self.trained):
            raise ValueError(
                "for a network that predicts the clean sample, invariance is the same as "
                "equivariance; use another parameterization"
            )
        if self.parameterization == "flow" and (self.learned_variance or self.sampler == "ddpm"):
            raise ValueError("flow has no ancestral sampler: use sampler ddim, learned_variance no")
        if self.parameterization == "flow" and self.clip is not None:
            if "clip" in self.model_fields_set:
                raise ValueError("the sampler of flow cannot clip: leave out `clip`, or null")
            self.clip = None
        if self.features is None:
            self.features = ("pixels", "digits") if self.data == "digits" else ("pixels",)
        if self.learned_variance and not self.facts.standard_noising:
            raise ValueError(
                f"learned_variance needs samples noised as usual, which {self.objective} does not"
            )
        self._refuse_dropout_of_a_part(self.dropout)
        self.check_bands(self.channels)
        if isinstance(self.band, list) and self.weight == "auto":
            raise ValueError("a weight can be found for one band; for several give a number")
        return self
