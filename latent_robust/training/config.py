"""Every setting that a training run of either space has. One flat name each: a key in YAML is an
option on the command line (`batch_size` is `--batch-size`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from latent_robust.core import (
    LEVELLED,
    OBJECTIVES,
    REGULARIZED,
    NoiseProcess,
    Objective,
    RadiusSchedule,
    Weighting,
    make_objective,
)
from latent_robust.core.perturbation import ADVERSARIAL
from latent_robust.core.rows import check_share
from latent_robust.errors import InputError

ObjectiveName = Literal[tuple(OBJECTIVES)]

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TrainConfig(BaseModel):
    """Defaults are those of the digits study in RESULTS.md unless a subclass says otherwise."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    # the run
    config: Path | None = Field(None, exclude=True, description="YAML file; options win over it")
    out: Path | None = Field(None, description="run directory (default: a new one under runs/)")
    seed: int = Field(0, ge=0, description="of weights, batches, noise and contamination")
    steps: int = Field(5000, ge=1, description="optimizer steps")
    resume: str | None = Field(
        None,
        exclude=True,
        description="'auto' (the default without a value): this --out; or a run or checkpoint",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    offline: bool = Field(False, description="never touch the network")
    dry_run: bool = Field(
        False, exclude=True, description="print the resolved configuration and leave"
    )

    # the data
    data: str = Field("digits", description="digits, fashion-mnist:DIR, parquet:FILE, DIR, hf:NAME")
    contamination: str = Field(
        "none", description="e.g. 'gaussian:fraction=0.9,sigma=0.2; jpeg:fraction=0.3,quality=20'"
    )
    limit: int | None = Field(None, ge=1, description="use only the first N pictures")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more than this share of the files is broken"
    )
    levels: Path | None = Field(
        None, description="JSONL of {index, level}, for the ambient objective"
    )
    drop_noisy: bool = Field(
        False,
        description="ambient, audited: leave out the samples that have a level, instead of "
        "training on them above it",
    )
    workers: int = Field(0, ge=0, description="data loading processes")

    # the objective
    objective: ObjectiveName = Field("ddpm", description="what is minimised")
    judge: ObjectiveName = Field(
        "robust-adversarial",
        description="trained first, for audited: the model that audits the data",
    )
    init: Path | None = Field(
        None, description="directory of a finished run: start from what it has learned"
    )
    beside: ObjectiveName | None = Field(
        None, description="also train this objective, same budget, for comparison in the report"
    )
    weighting: Literal["paper", "normalized", "band"] = "band"
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="of the regularizer; 0 is plain training; auto: what suits the noise and the "
        "spectrum of the data, 0 when they look clean",
    )
    band: float | str = Field(
        "auto",
        description="noise level below which it acts, in units of the data, latents' in latent "
        "space, or one for each channel; auto: likewise",
    )
    rho: float = Field(2.0, ge=0, description="radius = scale * sigma**rho + bias")
    radius_scale: float = Field(1.0, ge=0)
    bias_min: float = Field(8 / 255, ge=0)
    bias_max: float = Field(16 / 255, ge=0)
    attack: Literal[ADVERSARIAL] = Field(
        "displacement",
        description="of robust-adversarial: along the displacement that a random perturbation "
        "causes, or by a gradient (FGSM), as in the paper, which costs more",
    )
    attack_steps: int = Field(1, ge=1, description="more than 1: PGD, and its like")
    fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the samples that is regularized (default: a quarter, if it is all by "
        "robust-random, else an eighth)",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="regularize in every so-manieth batch, so many times as many samples (default: "
        "1, if it is all by robust-random or fraction is above a half, else 2)",
    )
    late_start: float = Field(
        1.0, gt=0, le=1, description="share of the steps, the last ones, that are regularized"
    )
    huber_c: float = Field(0.1, gt=0, le=1, description="of pseudo-huber")
    gamma: float = Field(0.1, ge=0, description="of input-perturbation")

    # the optimizer
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit needs bitsandbytes and a CUDA device"
    )
    batch_size: int = Field(64, ge=1, description="per process and accumulation step")
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(200, ge=0, description="steps of linear warm-up before the cosine")
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.9995, ge=0, lt=1, description="0 switches the average off")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no",
        description="of the network; noise and targets stay float32. bf16 cannot carry the "
        "perturbations of the very lowest noise levels (t < 20 of 1000)",
    )
    compile: bool = Field(
        False, description="torch.compile the network: minutes at the start, faster steps"
    )

    # what is written, and when
    log_every: int = Field(50, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads `no` as false

    @field_validator("contamination", mode="before")
    @classmethod
    def _join(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if not all(isinstance(spec, str) for spec in value):
            raise ValueError("give each as a text, such as gaussian:fraction=0.5,sigma=0.1")
        return "; ".join(value)

    # Not of a type with `list`: the command line would make a list of every single number.
    @field_validator("band", mode="plain")
    @classmethod
    def _bands(cls, value: Any) -> float | list[float] | str:
        if value == "auto":
            return value
        parts = value.strip("[] ").split(",") if isinstance(value, str) else value
        try:
            bands = [float(part) for part in (parts if isinstance(parts, list) else [parts])]
        except (TypeError, ValueError):
            bands = []
        if not bands or not min(bands) > 0:
            raise ValueError("must be > 0, or one such for each channel, or 'auto'")
        return bands if len(bands) > 1 else bands[0]

    @field_serializer("band")
    def _as_it_is(self, value: float | list[float] | str) -> Any:
        return value

    @model_validator(mode="after")
    def _consistent(self):
        self._radius()
        # An attack's own pass is worth being a full one; random perturbations have none, so that
        # twice as many cost as much (RESULTS.md, What it costs).
        random = self.forecast_attack == "random"
        if self.fraction is None:
            self.fraction = 0.25 if random else 0.125
        if self.every is None:
            self.every = 1 if random or 2 * self.fraction > 1 else 2
        check_share(self.fraction, self.every)
        if self.weight == "auto" and self.weighting != "band":
            raise ValueError(f"weighting {self.weighting} needs a number as `weight`, e.g. 0.3")
        if self.band == "auto" and self.weighting != "band":
            self.band = 1.0  # it has no meaning
        if self.objective == "ambient" and self.levels is None and self.contamination == "none":
            raise ValueError(
                "objective ambient needs noise levels: give levels FILE, or a contamination whose "
                "true levels are known"
            )
        if self.levels is not None and "ambient" not in (self.objective, self.beside):
            raise ValueError("levels are of the ambient objective: add objective ambient")
        if self.objective == "audited" and self.judge in LEVELLED:
            raise ValueError(f"judge {self.judge} needs levels itself; use robust-adversarial")
        if self.drop_noisy and self.objective not in LEVELLED:
            raise ValueError("drop_noisy goes by noise levels: use objective audited or ambient")
        return self

    def _refuse_dropout_of_a_part(self, dropout: float) -> None:
        if dropout and self.fraction * self.every < 1 and self.objective in REGULARIZED:
            raise ValueError(
                f"dropout {dropout} with fraction {self.fraction}: dropout masks cannot be shared "
                "between batches of different size; use fraction 1, --every so large that a whole "
                "batch is regularized at a time, or dropout 0"
            )

    def _radius(self) -> RadiusSchedule:
        return RadiusSchedule(self.rho, self.radius_scale, self.bias_min, self.bias_max)

    def check_bands(self, channels: int) -> None:
        """InputError unless there is one band, or one for each channel."""
        if isinstance(self.band, list) and len(self.band) != channels:
            raise InputError(
                f"{len(self.band)} bands for data of {channels} channels: give one, or one each"
            )

    @property
    def regularized(self) -> set[str]:
        """The objectives with the regularizer among all that are trained."""
        return regularized_among(self.objective, self.beside, self.judge)

    @property
    def judged_by(self) -> str:
        """What the judge of an audited run was trained by; also the name of its directory."""
        return self.judge

    @property
    def forecast_attack(self) -> str:
        """The attack of all that is regularized, for a forecast of what it does."""
        return "random" if self.regularized == {"robust-random"} else self.attack

    @property
    def open_weighting(self) -> dict[str, float | list[float]] | None:
        """What is given of `weight` and `band`; None where nothing is left to the data, or where
        nothing of what is trained asks for them."""
        given = {"weight": self.weight, "band": self.band}
        if "auto" not in given.values() or not self.regularized:
            return None
        return {name: value for name, value in given.items() if value != "auto"}

    def objective_for(self, process: NoiseProcess) -> Objective:
        """The objective of this configuration. The regularizer's `weight` and `band` must have been
        resolved to numbers."""
        # A penalty that comes more seldom than in every second optimizer step, with more than twice
        # the weight, does harm (RESULTS.md, What it costs).
        least = 0.5 / (self.batch_size * self.gradient_accumulation)
        open_still = "auto" in (self.weight, self.band)
        if open_still and self.objective in REGULARIZED:
            raise ValueError(f"weight {self.weight} and band {self.band} must be numbers by now")
        return make_objective(
            self.objective,
            process,
            weighting=None if open_still else Weighting(self.weighting, self.weight, self.band),
            radius=self._radius(),
            attack=self.attack,
            attack_steps=self.attack_steps,
            fraction=max(self.fraction, min(least, 1 / self.every)),
            every=self.every,
            precision=HALF.get(self.mixed_precision),
            huber_c=self.huber_c,
            gamma=self.gamma,
        )


def regularized_among(objective: str, beside: str | None, judge: str | None) -> set[str]:
    """Those of the objectives of a run that have the regularizer."""
    trained = {objective, beside}
    return REGULARIZED & ({*trained, judge} if "audited" in trained else trained)
