"""The settings that only pixel-space runs have. Shared ones: latent_robust/training/config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from latent_robust.core import LEVELLED
from latent_robust.training.config import ObjectiveName, TrainConfig


class PixelConfig(TrainConfig):
    """Train a pixel-space diffusion model on pictures that may be dirty."""

    objective: ObjectiveName = Field("robust-adversarial", description="what is minimised")
    rounds: int = Field(
        1,
        ge=1,
        description="of audited: audit and train so many times, each round judged by the network "
        "of the one before",
    )

    # the pictures
    size: int = Field(8, ge=4, description="pixels a side")
    channels: Literal[1, 3] = Field(1, description="gray or RGB")
    flip: bool = Field(False, description="mirror half of the pictures at random")

    # the network, diffusers' UNet2DModel
    block_out_channels: tuple[int, ...] = Field((16, 32), description="one per resolution")
    layers_per_block: int = Field(1, ge=1)
    attention_levels: tuple[int, ...] = Field((), description="resolutions with attention, 0-based")
    attention_head_dim: int = Field(16, ge=1)
    norm_groups: int = Field(8, ge=1)
    scale_shift: bool = Field(False, description="time enters as scale and shift (Improved DDPM)")
    dropout: float = Field(0.0, ge=0, lt=1)
    learned_variance: bool = Field(False, description="L_hybrid of Improved DDPM")

    # the noise process
    parameterization: Literal["epsilon", "v_prediction", "sample", "flow"] = "epsilon"
    noise_steps: int = Field(1000, ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"

    # sampling and evaluation
    sampler: Literal["ddim", "ddpm"] = "ddim"
    sampling_steps: int = Field(50, ge=1)
    clip: float | None = Field(
        1.0,
        gt=0,
        description="keep the sampler's implied clean picture within +-clip; null: do not, as with "
        "flow",
    )
    stop_at: float | None = Field(
        None,
        gt=0,
        description="do not ask the network below this noise level, in units of the data, but end "
        "with its clean estimate there (default: where no sample is clean, their least level, else "
        "not at all)",
    )
    samples: int = Field(1797, ge=0, description="pictures drawn for the metrics; 0 for none")
    features: tuple[str, ...] | None = Field(
        None,
        description="spaces in which distances to clean data are measured: pixels, digits, "
        "fashion-mnist, inception, dinov2:DIR, open_clip:NAME:FILE, FILE.safetensors "
        "(default: pixels; for the digits also their network's)",
    )
    reference: str | None = Field(
        None,
        description="clean pictures to measure against, as --data (default: the data "
        "before --contamination)",
    )
    weights: Path | None = Field(None, description="weights file of the inception features")

    @field_validator("channels", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """The command line gives texts, which are none of the literals."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @property
    def judged_by(self) -> str:
        return "audited" if self.rounds > 1 else self.judge

    @model_validator(mode="after")
    def _fits(self):
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
                f"attention_levels {self.attention_levels} count the {levels} resolutions from 0, "
                "they are no pixels"
            )
        if self.sampling_steps > self.noise_steps:
            raise ValueError(
                f"sampling_steps {self.sampling_steps} is more than noise_steps {self.noise_steps}"
            )
        if self.rounds > 1 and "audited" not in (self.objective, self.beside):
            raise ValueError(f"rounds {self.rounds} is of objective audited")
        if self.parameterization == "sample" and "invariance" in (self.objective, self.beside):
            raise ValueError("invariance of a predicted sample is the regularizer, no control")
        if self.parameterization == "flow" and (self.learned_variance or self.sampler == "ddpm"):
            raise ValueError("flow has no ancestral sampler: use sampler ddim, learned_variance no")
        if self.parameterization == "flow" and self.clip is not None:
            if "clip" in self.model_fields_set:
                raise ValueError("the sampler of flow cannot clip: leave out `clip`, or null")
            self.clip = None
        if self.features is None:
            self.features = ("pixels", "digits") if self.data == "digits" else ("pixels",)
        if self.learned_variance and self.objective in LEVELLED | {"input-perturbation", "at-diff"}:
            raise ValueError(
                f"learned_variance needs samples noised as usual, which {self.objective} does not"
            )
        self._refuse_dropout_of_a_part(self.dropout)
        self.check_bands(self.channels)
        if isinstance(self.band, list) and self.weight == "auto":
            raise ValueError("a weight can be found for one band; for several give a number")
        return self
