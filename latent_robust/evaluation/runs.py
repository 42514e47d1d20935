"""A run directory, as far as it has come: what a report can show of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latent_robust.core.registry import OBJECTIVES
from latent_robust.errors import InputError

# What metrics.json has beside `metrics`, because it needs no images to compare with.
BESIDE = ("match", "clip")
_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"


@dataclass(frozen=True)
class Run:
    """config: flat, from config.yaml; metrics: metrics.json or {}; log: the rows of log.jsonl;
    images: files that exist, by stem (`training`, `clean`, `final`); stages: (step, file),
    in order; prompts: of the columns of the stages, if these were drawn from prompts; quarantined:
    how many images were left out; audit: rows of audit.jsonl."""

    name: str
    config: dict
    metrics: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)
    stages: list[tuple[int, Path]] = field(default_factory=list)
    prompts: tuple[str, ...] = ()
    quarantined: int = 0
    audit: list[dict] = field(default_factory=list)

    @property
    def objective(self) -> str:
        return str(self.config.get("objective", "unknown objective"))

    @property
    def measured(self) -> bool:
        return bool(self.metrics.get("metrics"))

    @property
    def result(self) -> dict:
        """All that was measured of its images, and of them together with their captions."""
        beside = {key: self.metrics[key] for key in BESIDE if self.metrics.get(key)}
        return {**(self.metrics.get("metrics") or {}), **beside}

    @property
    def regularized(self) -> bool:
        """Whether it was trained with the regularizer; with weight 0 it was not."""
        facts = OBJECTIVES.get(self.objective)
        return facts is not None and facts.regularized and self.config.get("weight") != 0

    @property
    def kind(self) -> str:
        """A key of the commands' RUN_KINDS."""
        return "latent" if self.latent else "pixel"

    @property
    def latent(self) -> bool:
        """Whether its noise levels are in units of latents instead of images."""
        return "model" in self.config

    @property
    def compared_with(self) -> str:
        """With images of the kind `clean`, or, where there are none, `training`."""
        return "training" if self.metrics.get("compared_with") == "training" else "clean"


def compared_with(runs: Sequence[Run]) -> set[str]:
    """What those that have been measured were measured against: none, one or both kinds."""
    return {run.compared_with for run in runs if run.measured}


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """In the given order; several are named by their objectives if these tell them apart, else by
    as much of their paths as does.

    InputError for a directory without config.yaml, or with files that cannot be read.
    """
    if not directories:
        raise InputError("a report needs at least one run directory")
    paths = [Path(directory).resolve() for directory in directories]
    if len(set(paths)) < len(paths):
        raise InputError("the same run directory was given twice")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    found = [_read_run(path, "/".join(path.parts[-depth:])) for path in paths]
    if 1 < len(found) == len({run.objective for run in found}):
        found = [replace(run, name=run.objective) for run in found]
    return found


def _read_run(directory: Path, name: str) -> Run:
    samples = directory / "samples"
    stems = ("training", "clean", "final")
    steps = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in samples.glob("step-*.png"))
    quarantine = directory / "quarantine.jsonl"
    config, metrics = _read_config(directory), _read_metrics(directory / "metrics.json")
    if config.get("stop_at") is None and "stop_at" in metrics:
        config["stop_at"] = metrics["stop_at"]  # it was found, not given
    return Run(
        name=name,
        config=config,
        metrics=metrics,
        log=_read_log(directory / "log.jsonl"),
        images={s: samples / f"{s}.png" for s in stems if (samples / f"{s}.png").is_file()},
        stages=sorted((int(match[1]), path) for match, path in steps if match),
        prompts=_read_prompts(samples / "prompts.json"),
        quarantined=len(quarantine.read_text().splitlines()) if quarantine.is_file() else 0,
        audit=_read_log(directory / "audit.jsonl"),
    )


def _read_config(directory: Path) -> dict:
    import yaml

    path = directory / "config.yaml"
    if not path.is_file():
        raise InputError(f"{directory} is not a run directory: it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold keys and values, got {type(config).__name__}")
    return config


def _read_metrics(path: Path) -> dict:
    return _read_json(path, "evaluate the run again") or {}


def _read_prompts(path: Path) -> tuple[str, ...]:
    prompts = _read_json(path, "delete it, and the report does without")
    if prompts is None:
        return ()
    if not isinstance(prompts, list):
        raise InputError(f"{path} must hold a list of prompts, got {type(prompts).__name__}")
    return tuple(map(str, prompts))


def _read_json(path: Path, remedy: str) -> object:
    """None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"cannot read {path}: {error}; {remedy}") from error


def _read_log(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that a killed run was writing
    return rows


def noise_level(config: dict) -> float | None:
    """The standard deviation of the Gaussian contamination in units of the data, [-1, 1].

    The configuration states it in units of [0, 1], among other corruptions, in one text or several:
    `gaussian:fraction=0.9,sigma=0.2; blur:fraction=0.1,sigma=1`. The upper end counts of a range,
    `sigma=0.0-0.3`; several Gaussians add in squares. None where there is none.
    """
    contamination = config.get("contamination") or []
    texts = [contamination] if isinstance(contamination, str) else contamination
    levels = []
    for spec in (spec for text in texts for spec in str(text).split(";")):
        kind, _, parameters = spec.partition(":")
        sigma = re.search(rf"\bsigma\s*=\s*(?:{_NUMBER}-)?({_NUMBER})", parameters)
        if kind.strip() == "gaussian" and sigma:
            levels.append(2 * float(sigma[1]))
    return math.hypot(*levels) if levels else None
