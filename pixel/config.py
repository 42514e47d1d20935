"""Settings of `train-pixel` only. The shared ones are in latent_robust/training/config.py."""

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

# Channels of the U-Net at each resolution, by the largest image size (pixels) they are used for.
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
    size: int = setting(8, "crop and resize images to N x N pixels", NEED, common=True, ge=4)
    channels: Literal[1, 3] = setting(1, "1 for gray images, 3 for RGB", NEED, "N", common=True)
    tag_dirt: bool = setting(
        False,
        "for audited and ambient: use dirty images at every noise level, as a class of their own "
        "that is not generated, instead of only where noise hides the dirt",
        STRENGTH,
    )
    rounds: int = setting(
        1,
        "for audited: repeat audit and training N times, each audit with the newest network",
        STRENGTH,
        ge=1,
    )

    # ------------------------------------------------------------ watching
    reference: str | None = setting(
        None,
        "clean images to measure against; same forms as --data (default: the data before "
        "--contamination)",
        WATCH,
        "DATA",
        common=True,
    )
    samples: int = setting(
        1797, "images to generate for the metrics; 0 skips the metrics", WATCH, common=True, ge=0
    )
    sampler: Literal["ddim", "ddpm"] = setting(
        "ddim", "sampler: ddim is deterministic, ddpm ancestral", WATCH
    )
    sampling_steps: int = setting(50, "denoising steps per generated image", WATCH, ge=1)
    clip: float | None = setting(
        1.0,
        "clip the sampler's estimate of the clean image to [-X, X]; null switches clipping off, as "
        "flow matching always does",
        WATCH,
        gt=0,
    )
    stop_at: float | None = setting(
        None,
        "stop sampling at this noise level and return the estimate of the clean image there "
        "(default: the lowest level among the training images if none is clean, else off)",
        WATCH,
        gt=0,
    )
    features: tuple[str, ...] | None = setting(
        None,
        "feature spaces in which distances are measured: pixels, digits, fashion-mnist, cifar10, "
        "inception, dinov2:DIR, open_clip:NAME:FILE, FILE.safetensors (default: pixels; for "
        "digits also digits)",
        WATCH,
        "NAME,...",
    )
    weights: Path | None = setting(
        None, "file with the weights of the Inception features", WATCH, "FILE"
    )

    # ------------------------------------------------------------ experiments
    flip: bool = setting(False, "mirror each training image with probability 1/2", EXPERIMENT)
    block_out_channels: tuple[int, ...] | None = setting(
        None, "U-Net: channels at each resolution (default: chosen by --size)", EXPERIMENT, "N,..."
    )
    layers_per_block: int = setting(1, "U-Net: residual blocks per resolution", EXPERIMENT, ge=1)
    attention_levels: tuple[int, ...] = setting(
        (),
        "U-Net: indices of the resolutions with attention; 0 is the full image size",
        EXPERIMENT,
        "N,...",
    )
    attention_head_dim: int = setting(16, "U-Net: channels per attention head", EXPERIMENT, ge=1)
    norm_groups: int = setting(8, "U-Net: groups in each group normalization", EXPERIMENT, ge=1)
    scale_shift: bool = setting(
        False, "U-Net: feed the time as scale and shift, as Improved DDPM does", EXPERIMENT
    )
    dropout: float = setting(0.0, "U-Net: dropout probability", EXPERIMENT, ge=0, lt=1)
    learned_variance: bool = setting(
        False, "also learn the variance (L_hybrid of Improved DDPM)", EXPERIMENT
    )
    parameterization: Literal["epsilon", "v_prediction", "sample", "flow"] = setting(
        "epsilon", "what the network predicts", EXPERIMENT
    )
    noise_steps: int = setting(1000, "time steps of the noise process", EXPERIMENT, ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = setting(
        "linear", "how the noise grows with time, by diffusers' names", EXPERIMENT
    )

    @field_validator("channels", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """Options arrive as text, but Literal[1, 3] needs a number."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @property
    def auditor_run(self) -> str:
        """Directory of the auditor. With several rounds, the auditor is itself an audited run."""
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
                f"{len(self.block_out_channels)} resolutions need; use a multiple of {halvings} "
                "or fewer block_out_channels"
            )
        for width in self.block_out_channels:
            if width % self.norm_groups:
                raise ValueError(
                    f"block_out_channels {width} is not a multiple of norm_groups "
                    f"{self.norm_groups}; change one of them"
                )
        levels = len(self.block_out_channels)
        if not all(0 <= level < levels for level in self.attention_levels):
            raise ValueError(
                f"attention_levels {self.attention_levels} must be from 0 to {levels - 1}: they "
                f"count the {levels} resolutions from 0 and are not sizes in pixels"
            )
        if self.sampling_steps > self.noise_steps:
            raise ValueError(
                f"sampling_steps {self.sampling_steps} is more than noise_steps "
                f"{self.noise_steps}; use fewer"
            )
        self._check_tags(self.tag_dirt)
        if self.tag_dirt and self.learned_variance:
            raise ValueError("tag_dirt works without learned_variance; choose one")
        if self.rounds > 1 and not any(facts.needs_audit for facts in self.trained):
            raise ValueError(f"rounds {self.rounds} is for the objective audited; leave it at 1")
        if self.parameterization == "sample" and not all(f.equivariant for f in self.trained):
            raise ValueError(
                "with parameterization sample, invariance is the same as equivariance; use another "
                "parameterization, e.g. epsilon"
            )
        if self.parameterization == "flow" and (self.learned_variance or self.sampler == "ddpm"):
            raise ValueError("parameterization flow needs sampler ddim and no learned_variance")
        if self.parameterization == "flow" and self.clip is not None:
            if "clip" in self.model_fields_set:
                raise ValueError(
                    f"the sampler of parameterization flow cannot clip, got {self.clip}; use null"
                )
            self.clip = None
        if self.features is None:
            self.features = ("pixels", "digits") if self.data == "digits" else ("pixels",)
        if self.learned_variance and not self.facts.standard_noising:
            raise ValueError(
                f"learned_variance does not work with objective {self.objective}, which changes "
                "how samples are noised; switch it off"
            )
        self._refuse_dropout_of_a_part(self.dropout)
        self.check_bands(self.channels)
        if isinstance(self.band, list) and self.weight == "auto":
            raise ValueError(
                f"weight auto works with one band, got {len(self.band)}; for several give a number"
            )
        return self
