"""The settings that every training run has, in pixel and in latent space.

One flat name each: the key `batch_size` in YAML is the option `--batch-size`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from latent_robust.core.radius import RadiusSchedule
from latent_robust.core.registry import (
    ADVERSARIAL,
    GAMMA,
    HUBER_C,
    OBJECTIVES,
    ObjectiveFacts,
    check_share,
    facts_of,
)
from latent_robust.errors import InputError
from latent_robust.limits import MAX_BAD_FRACTION

from .options import GROUPS, setting

if TYPE_CHECKING:  # a type checker cannot read a Literal that is built at run time
    ObjectiveName = str
    AttackName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    AttackName = Literal[ADVERSARIAL]

NEED, STRENGTH, LORA, MEMORY, WATCH, EXPERIMENT = GROUPS

OBJECTIVE_HELP = (
    f"what is minimised: {', '.join(OBJECTIVES)}; see docs/choosing-an-objective.md for which to "
    "choose"
)


class TrainConfig(BaseModel):
    """Defaults are those of the digits study (docs/results/digits.md); subclasses override some."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    # Help shows these fields before the others of their group.
    HELP_FIRST: ClassVar[tuple[str, ...]] = ("data", "out", "objective", "steps")

    # ------------------------------------------------------------ what you need
    config: Path | None = setting(
        None, "YAML file of settings; options override it", NEED, "FILE", common=True, exclude=True
    )
    data: str = setting("digits", "training data", NEED, "DATA", common=True)
    out: Path | None = setting(
        None, "run directory (default: a new one under runs/)", NEED, "DIR", common=True
    )
    objective: ObjectiveName = setting("ddpm", OBJECTIVE_HELP, NEED, "NAME", common=True)
    steps: int = setting(5000, "optimizer steps", NEED, common=True, ge=1)
    batch_size: int = setting(
        64, "samples per process and accumulation step", NEED, common=True, ge=1
    )
    learning_rate: float = setting(
        2e-3, "peak learning rate of AdamW, after the warm-up", NEED, common=True, gt=0
    )
    resume: str | None = setting(
        None,
        "continue a run: give its directory or a checkpoint, or nothing for the run in --out",
        NEED,
        "[RUN]",
        common=True,
        exclude=True,
    )
    seed: int = setting(
        0, "seed of weights, batches, noise and contamination", NEED, common=True, ge=0
    )
    dry_run: bool = setting(
        False,
        "check the settings, the data and the model, print what would run, and stop",
        NEED,
        common=True,
        exclude=True,
    )
    offline: bool = setting(False, "never use the network", NEED, common=True)
    limit: int | None = setting(None, "use only the first N images", NEED, common=True, ge=1)
    max_bad_fraction: float = setting(
        MAX_BAD_FRACTION,
        "stop if more than this share of the files cannot be used",
        NEED,
        ge=0,
        le=1,
    )
    init: Path | None = setting(None, "start from the weights of a finished run", NEED, "RUN")

    # ------------------------------------------------------------ how strong
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] = setting(
        "auto",
        "strength of the regularizer: 0 is plain training, auto chooses it from the noise in the "
        "data",
        STRENGTH,
        "X|auto",
        common=True,
    )
    band: float | list[float] | str = setting(
        "auto",
        "noise level up to which the regularizer acts, in units of the data ([-1, 1] for images); "
        "one number, or one per channel",
        STRENGTH,
        "X|auto",
    )
    weighting: Literal["paper", "normalized", "band"] = setting(
        "band", "how the strength depends on the noise level", STRENGTH
    )
    attack: AttackName = setting(
        "displacement",
        "how robust-adversarial chooses its perturbation: displacement needs forward passes only, "
        "gradient is the paper's FGSM and costs more",
        STRENGTH,
    )
    penalty_fraction: float | None = setting(
        None,
        "share of the samples that are penalized; the main cost knob (default: 0.25 for "
        "robust-random, else 0.125)",
        STRENGTH,
        gt=0,
        le=1,
    )
    penalty_every: int | None = setting(
        None,
        "apply the penalty every N-th batch, to N times as many samples (default: 2 for "
        "robust-adversarial, else 1)",
        STRENGTH,
        ge=1,
    )
    penalty_last: float = setting(
        1.0, "apply the penalty only during this last share of the steps", STRENGTH, gt=0, le=1
    )
    auditor: ObjectiveName = setting(
        "robust-adversarial",
        "for audited: the objective of the auditor, a model that is trained first to audit the "
        "data",
        STRENGTH,
        "NAME",
    )
    levels: Path | None = setting(
        None,
        "for ambient: the noise level of each sample, as written by an audit",
        STRENGTH,
        "FILE",
    )
    audit: Path | None = setting(
        None,
        "audit.jsonl of `latent-robust audit DATA`: copies are left out; ambient also takes the "
        "noise levels from it",
        STRENGTH,
        "FILE",
        common=True,
    )
    trusted: str | None = setting(
        None,
        "for audited: 20 to 100 clean samples that you vouch for, by which the others are judged; "
        "data in the form of --data, or names:FILE with names of samples in the data",
        STRENGTH,
        "DATA",
        common=True,
    )
    drop_noisy: bool = setting(
        False,
        "for audited and ambient: leave noisy samples out, instead of training on them at noise "
        "levels above their own",
        STRENGTH,
    )
    attack_steps: int = setting(
        1, "steps of the attack; more than 1 is PGD", STRENGTH, yaml_only=True, ge=1
    )
    rho: float = setting(
        RadiusSchedule.rho,
        "radius = radius_scale * sigma**rho + bias",
        STRENGTH,
        yaml_only=True,
        ge=0,
    )
    radius_scale: float = setting(RadiusSchedule.scale, "see rho", STRENGTH, yaml_only=True, ge=0)
    bias_min: float = setting(
        RadiusSchedule.bias_min, "smallest bias of the radius", STRENGTH, yaml_only=True, ge=0
    )
    bias_max: float = setting(
        RadiusSchedule.bias_max, "largest bias of the radius", STRENGTH, yaml_only=True, ge=0
    )
    huber_c: float = setting(
        HUBER_C, "for pseudo-huber and hellinger: their c", STRENGTH, yaml_only=True, gt=0, le=1
    )
    gamma: float = setting(
        GAMMA, "for input-perturbation: its strength", STRENGTH, yaml_only=True, ge=0
    )

    # ------------------------------------------------------------ memory and speed
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "where to train", MEMORY, common=True
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = setting(
        "no",
        "precision of the network; noise and targets stay float32",
        MEMORY,
        common=True,
    )
    workers: int = setting(0, "processes that load data", MEMORY, ge=0)
    gradient_accumulation: int = setting(1, "batches per optimizer step", MEMORY, ge=1)
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "adamw8bit needs bitsandbytes and a CUDA device", MEMORY
    )
    compile: bool = setting(
        False, "torch.compile the network: takes minutes at the start, then faster steps", MEMORY
    )

    # ------------------------------------------------------------ watching
    compare_with: ObjectiveName | None = setting(
        None,
        "also train this objective (ddpm, say) with the same budget, for comparison in the report",
        WATCH,
        "NAME",
        common=True,
    )
    log_every: int = setting(50, "write a row of log.jsonl every N steps", WATCH, ge=1)
    checkpoint_every: int = setting(
        1000, "save a checkpoint and previews every N steps", WATCH, ge=1
    )
    keep_checkpoints: int = setting(2, "checkpoints to keep", WATCH, ge=1)

    # ------------------------------------------------------------ experiments
    contamination: str = setting(
        "none",
        "contaminate the data on purpose, e.g. 'gaussian:fraction=0.9,sigma=0.2; "
        "jpeg:fraction=0.3,quality=20'",
        EXPERIMENT,
        "SPEC",
        common=True,
    )
    warmup: int = setting(200, "steps of linear warm-up before the cosine", EXPERIMENT, ge=0)
    weight_decay: float = setting(0.0, "weight decay of AdamW", EXPERIMENT, ge=0)
    max_gradient_norm: float = setting(1.0, "gradients are clipped to this norm", EXPERIMENT, gt=0)
    ema_decay: float = setting(
        0.9995, "decay of the averaged weights; 0 switches the average off", EXPERIMENT, ge=0, lt=1
    )

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

    @field_validator("band", mode="plain")
    @classmethod
    def _bands(cls, value: Any) -> float | list[float] | str:
        """ "auto", one number, or a list of numbers; as text, separated by commas."""
        if value == "auto":
            return "auto"
        parts = value.strip("[] ").split(",") if isinstance(value, str) else value
        try:
            bands = [float(part) for part in (parts if isinstance(parts, list) else [parts])]
        except (TypeError, ValueError):
            bands = []
        if not bands or not min(bands) > 0:
            raise ValueError("must be > 0, or one such number for each channel, or 'auto'")
        return bands if len(bands) > 1 else bands[0]

    @field_serializer("band")
    def _unchanged(self, value: float | list[float] | str) -> Any:
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        self.radius_schedule()  # raises for a radius out of range
        # An attack needs a pass of its own, which pays off only for many rows. A random
        # perturbation needs none, so twice as many rows cost the same (docs/results/cost.md).
        random = self.forecast_attack == "random"
        if self.penalty_fraction is None:
            self.penalty_fraction = 0.25 if random else 0.125
        if self.penalty_every is None:
            self.penalty_every = 1 if random or 2 * self.penalty_fraction > 1 else 2
        check_share(*self.penalty_share)
        if self.weight == "auto" and self.weighting != "band":
            raise ValueError(
                f"weighting {self.weighting} needs a number as `weight`, got auto; e.g. 0.3"
            )
        if self.band == "auto" and self.weighting != "band":
            self.band = 1.0  # not used
        given = (self.levels, self.audit)
        if self.facts.takes_levels and given == (None, None) and self.contamination == "none":
            raise ValueError(
                f"objective {self.objective} needs noise levels: give --levels FILE or --audit "
                "FILE, or a contamination whose true levels are known"
            )
        if None not in given:
            raise ValueError("levels and audit both say how dirty each sample is; choose one")
        if self.levels is not None and not any(facts.takes_levels for facts in self.trained):
            raise ValueError("levels are for the objective ambient: add --objective ambient")
        if self.facts.needs_audit and self.auditor_facts.needs_levels:
            raise ValueError(f"auditor {self.auditor} needs levels itself; use robust-adversarial")
        if self.drop_noisy and not self.facts.needs_levels:
            raise ValueError("drop_noisy needs noise levels: use objective audited or ambient")
        return self

    def _check_tags(self, tag_dirt: bool | str | None) -> None:
        """Raises ValueError if dirt cannot be tagged. tag_dirt: the setting of each trainer."""
        if tag_dirt and not self.facts.needs_levels:
            raise ValueError("tag_dirt needs noise levels: use objective audited or ambient")
        if tag_dirt and self.drop_noisy:
            raise ValueError("tag_dirt uses what drop_noisy leaves out; choose one")

    def _refuse_dropout_of_a_part(self, dropout: float) -> None:
        """Raises ValueError for dropout if the penalty is computed on a part of each batch."""
        fraction, every = self.penalty_share
        whole = fraction * every >= 1
        if dropout and not whole and self.facts.regularized:
            raise ValueError(
                f"dropout {dropout} with penalty_fraction {fraction}: dropout masks cannot be "
                "shared between batches of different size; use --penalty-fraction 1, a "
                "--penalty-every so large that a whole batch is penalized, or dropout 0"
            )

    def radius_schedule(self) -> RadiusSchedule:
        """Raises ValueError for values out of range."""
        return RadiusSchedule(self.rho, self.radius_scale, self.bias_min, self.bias_max)

    def check_bands(self, channels: int) -> None:
        """Raises InputError unless there is one band, or one per channel."""
        if isinstance(self.band, list) and len(self.band) != channels:
            raise InputError(
                f"{len(self.band)} bands for data of {channels} channels: give one, or one per "
                "channel"
            )

    @property
    def penalty_share(self) -> tuple[float, int]:
        """`penalty_fraction` and `penalty_every`. Validation has replaced None by the defaults."""
        assert self.penalty_fraction is not None
        assert self.penalty_every is not None
        return self.penalty_fraction, self.penalty_every

    @property
    def facts(self) -> ObjectiveFacts:
        """What is true of the objective."""
        return OBJECTIVES[self.objective]

    @property
    def trained(self) -> tuple[ObjectiveFacts, ObjectiveFacts]:
        """The facts of the objective and of `compare_with`."""
        return self.facts, facts_of(self.compare_with)

    @property
    def auditor_facts(self) -> ObjectiveFacts:
        """The facts of the auditor's objective; of none if the auditor is not trained."""
        return _facts_if_trained(self.auditor)

    @property
    def regularized(self) -> list[ObjectiveFacts]:
        """The facts of the objectives with the regularizer, among all that are trained."""
        return regularized_among(self.objective, self.compare_with, self.auditor)

    @property
    def auditor_run(self) -> str:
        """Directory of an audited run's auditor: the name of its objective."""
        return self.auditor

    @property
    def forecast_attack(self) -> str:
        """The attack for a forecast: "random" if all regularized objectives are random."""
        regularized = self.regularized
        return "random" if regularized and all(f.random for f in regularized) else self.attack

    @property
    def given_weighting(self) -> dict[str, float | list[float]] | None:
        """Those of `weight` and `band` that are numbers.

        None if nothing has to be chosen from the data: both are numbers, or no trained objective
        uses them.
        """
        settings = {"weight": self.weight, "band": self.band}
        if "auto" not in settings.values() or not self.regularized:
            return None
        return {name: value for name, value in settings.items() if not isinstance(value, str)}


def regularized_among(
    objective: str | None, compare_with: str | None, auditor: str | None
) -> list[ObjectiveFacts]:
    """The facts of those objectives of a run that have the regularizer.

    auditor: counts only if one of the others needs it.
    """
    trained = [facts_of(objective), facts_of(compare_with)]
    if any(facts.needs_audit for facts in trained):
        trained.append(_facts_if_trained(auditor))
    return [facts for facts in trained if facts.regularized]


def _facts_if_trained(auditor: str | None) -> ObjectiveFacts:
    """auditor: an objective, or a name that is none: a model that is used without training."""
    return facts_of(auditor if auditor in OBJECTIVES else None)
