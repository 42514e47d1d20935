"""Reading a run directory for a report, however far the run has come."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latent_robust.core.registry import OBJECTIVES, ObjectiveFacts, facts_of
from latent_robust.errors import InputError

# Parts of metrics.json that compare images with their captions. They need no reference images.
CAPTION_METRICS = ("match", "clip")
_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    config: config.yaml, flat. metrics: metrics.json, {} if there is none. log: rows of log.jsonl.
    images: grids that exist, by stem (`training`, `clean`, `final`). stages: (step, file) of the
    grids generated during training, in order. prompts: one for each column of the stages, if these
    have prompts. quarantined: number of images left out. audit: rows of audit.jsonl. directory:
    None for a run that is not on disk.
    """

    name: str
    config: dict
    metrics: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)
    stages: list[tuple[int, Path]] = field(default_factory=list)
    prompts: tuple[str, ...] = ()
    quarantined: int = 0
    audit: list[dict] = field(default_factory=list)
    directory: Path | None = None

    @property
    def objective(self) -> str:
        return str(self.config.get("objective", "unknown objective"))

    @property
    def facts(self) -> ObjectiveFacts:
        """Of no objective if this one is unknown."""
        return OBJECTIVES.get(self.objective, facts_of(None))

    @property
    def regularized(self) -> bool:
        """Whether the regularizer was on: at weight 0 it was not."""
        return self.facts.regularized and self.config.get("weight") != 0

    @property
    def switched_off(self) -> bool:
        """Whether the objective has the regularizer, but at weight 0."""
        return self.facts.regularized and not self.regularized

    @property
    def plain(self) -> bool:
        """Whether it is plain training."""
        return self.facts.plain or self.switched_off

    @property
    def kind(self) -> str:
        """A key of the commands' RUN_KINDS."""
        return "latent" if self.latent else "pixel"

    @property
    def latent(self) -> bool:
        """Whether its noise levels are in units of latents instead of images."""
        return "model" in self.config

    @property
    def image_size(self) -> int | None:
        """Side of its images in pixels."""
        return self.config.get("size") or self.config.get("resolution")

    @property
    def measured(self) -> bool:
        return bool(self.metrics.get("metrics"))

    @property
    def result(self) -> dict:
        """All that was measured of its images: `metrics`, and CAPTION_METRICS by their names."""
        captions = {key: self.metrics[key] for key in CAPTION_METRICS if self.metrics.get(key)}
        return {**(self.metrics.get("metrics") or {}), **captions}

    @property
    def compared_with(self) -> str:
        """The kind of images its metrics compare with: `clean`, or `training` where no clean images
        are known."""
        return "training" if self.metrics.get("compared_with") == "training" else "clean"


def compared_with(runs: Sequence[Run]) -> set[str]:
    """The kinds of images that the measured runs were compared with: none, one or both."""
    return {run.compared_with for run in runs if run.measured}


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in the given order. Several runs are named by their objectives if these differ, else
    by the shortest ends of their paths that differ.

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
    runs = [_read_run(path, "/".join(path.parts[-depth:])) for path in paths]
    if 1 < len(runs) == len({run.objective for run in runs}):
        runs = [replace(run, name=run.objective) for run in runs]
    return runs


def _read_run(directory: Path, name: str) -> Run:
    samples = directory / "samples"
    stems = ("training", "clean", "final")
    steps = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in samples.glob("step-*.png"))
    quarantine = directory / "quarantine.jsonl"
    config, metrics = _read_config(directory), _read_metrics(directory / "metrics.json")
    if config.get("stop_at") is None and "stop_at" in metrics:
        config["stop_at"] = metrics["stop_at"]  # from the levels, not from the configuration
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
        directory=directory,
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
    prompts = _read_json(path, "delete the file; the report works without it")
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
            continue  # a killed run leaves its last line incomplete
    return rows


def wall_seconds(run: Run, runs: Sequence[Run]) -> float | None:
    """Wall time of training in seconds, that of an auditor trained for this run included. None if
    it is unknown. runs: where the auditor is looked for."""
    seconds = run.metrics.get("seconds")
    auditor = run.config.get("auditor", "base")
    if seconds is None or not run.facts.needs_audit or auditor == "base" or run.directory is None:
        return seconds
    # With several rounds the auditor is an audited run itself.
    folder = run.objective if run.config.get("rounds", 1) > 1 else auditor
    inner = [other for other in runs if other.directory == run.directory / folder]
    more = wall_seconds(inner[0], runs) if inner else None
    return None if more is None else seconds + more


def noise_level(config: dict) -> float | None:
    """Standard deviation of the Gaussian contamination, for data in [-1, 1]; None without any.

    The configuration gives it for data in [0, 1], among other corruptions, as one text or several:
    `gaussian:fraction=0.9,sigma=0.2; blur:fraction=0.1,sigma=1`. Of a range, `sigma=0.0-0.3`, the
    upper end is used. The variances of several Gaussians add.
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
