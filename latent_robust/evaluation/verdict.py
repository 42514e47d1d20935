"""What a report says first: one sentence in words, with one number.

The number compares Fréchet distances to clean images, in the feature space that `headline_space`
chooses: of a run and its baseline, or of a single run and its training data. When two distances
count as different is defined in methods.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from .features import headline_space, label
from .methods import (
    SMALL,
    Method,
    differ,
    feature_spaces,
    group_by_method,
    is_space,
    overlap,
    ratio,
)
from .runs import Run, compared_with, wall_seconds
from .tables import number

UNCERTAIN = 0.20  # below it, a difference between single seeds is called uncertain
SHORT = 60  # seconds; the wall time of shorter runs is mostly start-up
FEW = 100  # fewer images give only a hint: the shipped networks have 64 features
NOTHING_CLEAN = "nothing clean to measure against: look at the images"
NO_DISTANCE = "no distance was measured: look at the images"

# Settings in which runs must agree to be compared.
_DATA = ("data", "contamination", "reference", "limit", "size", "resolution", "channels")


@dataclass(frozen=True)
class Verdict:
    """headline: the answer. details: clauses that go with it. evidence: sentences that say what was
    compared with what."""

    headline: str
    details: tuple[str, ...] = ()
    evidence: str = ""

    @property
    def sentence(self) -> str:
        return "; ".join([self.headline, *self.details])


def verdict(runs: Sequence[Run]) -> Verdict:
    """The verdict on these runs. Of several methods it is about the best one against the baseline,
    which is the first one of plain training, or else the first."""
    diverged = [run for run in runs if _diverged(run)]
    if diverged:
        names = _join([_name(run, runs) for run in diverged])
        verb = "generates" if len(diverged) == 1 else "generate"
        remedy = "train again with a lower learning rate"
        return Verdict(f"diverged: {names} {verb} non-finite images", (remedy,))
    missing = tuple(_why_missing(run, runs) for run in runs if not run.result)
    methods = group_by_method([run for run in runs if run.result])
    if not methods:
        return Verdict("no verdict yet", missing)
    result = _of_one(methods[0]) if len(methods) == 1 else _of_several(methods, runs)
    return replace(result, details=(*result.details, *missing))


def _of_one(method: Method) -> Verdict:
    run = method.runs[0]
    nothing_clean = run.compared_with == "training" or not run.measured
    if run.switched_off:
        headline = _switched_off(run)
        if nothing_clean:
            return Verdict(headline)
        comparison = _against_training_data(method, "it")
        return replace(comparison, headline=headline, details=(comparison.headline,))
    if nothing_clean:
        return Verdict(NOTHING_CLEAN, _noise_of_one(method, "training images"))
    return _against_training_data(method, method.full_name)


def _against_training_data(method: Method, name: str) -> Verdict:
    """How near a method is to clean images, compared with the images that it was trained on."""
    training = _training_data(method)
    details = _noise_of_one(method, "clean images", training)
    space = _common_space([method, training])
    if space is None:
        return Verdict(NO_DISTANCE, details)
    evidence = _evidence(space, method, training)
    count = training.runs[0].result.get("samples", 0)
    if ratio(method, training, space) > 1 and method.runs[0].result.get("samples", 0) < count:
        evidence += (
            f" The training data were measured with {count:,} images, which lowers their distance."
        )
    headline = _mixed(method, training, space, name)
    headline = headline or _comparison(name, ratio(method, training, space), training.name)
    return Verdict(headline, (*details, *_few(method)), evidence)


def _training_data(method: Method) -> Method:
    """What was measured of the images that a method was trained on, as if it were a method."""
    floors = [(run.metrics.get("floors") or {}).get("training set", {}) for run in method.runs]
    return Method(
        "its training data",
        tuple(replace(r, metrics={"metrics": f}) for r, f in zip(method.runs, floors, strict=True)),
        plain=False,
    )


def _of_several(methods: Sequence[Method], runs: Sequence[Run]) -> Verdict:
    baseline = next((method for method in methods if method.plain), methods[0])
    rivals = [method for method in methods if method is not baseline]
    measured = [run for method in methods for run in method.runs]
    if baseline.plain and all(method.runs[0].switched_off for method in rivals):
        return Verdict(_switched_off(rivals[0].runs[0]))
    if (obstacle := _why_incomparable(measured)) is not None:
        return Verdict(f"no comparison: {obstacle}")
    kinds, space = compared_with(measured), _common_space(methods)
    if kinds == {"training"} or space is None:
        headline = NOTHING_CLEAN if kinds == {"training"} else NO_DISTANCE
        return Verdict(headline, _details(rivals[-1], baseline, runs, with_names=True))
    best = min(rivals, key=lambda method: method.distance(space))
    evidence = _evidence(space, best, baseline) + _training_evidence(space, best)
    single_seeds = len(best.runs) == len(baseline.runs) == 1
    if single_seeds and SMALL <= abs(1 - ratio(best, baseline, space)) < UNCERTAIN:
        evidence += " One seed each: so small a difference may be chance."
    mixed = _mixed(best, baseline, space, best.full_name)
    return Verdict(
        mixed or _of_the_best(best, baseline, rivals, space),
        (*_details(best, baseline, runs), *_few(best)),
        evidence,
    )


def _of_the_best(best: Method, baseline: Method, rivals: Sequence[Method], space: str) -> str:
    against, times = baseline.full_name, ratio(best, baseline, space)
    if overlap(best, baseline, space) and abs(1 - times) >= SMALL:
        return f"no difference: the seeds of {best.full_name} and {against} overlap"
    if len(rivals) == 1 or not differ(best, baseline, space):
        return _comparison(best.full_name, times, against)
    if times > 1:
        return f"{against} is nearest to clean images; {_comparison(best.full_name, times, 'that')}"
    equals = [method for method in rivals if method is best or not differ(method, best, space)]
    verb = "is" if len(equals) == 1 else "are"
    return (
        f"{_join([method.full_name for method in equals])} {verb} nearest to clean images of "
        f"{len(rivals) + 1} methods, {_relation(times)} than {against}"
    )


def _mixed(best: Method, baseline: Method, space: str, name: str) -> str | None:
    """For two feature spaces that contradict each other; None if none do."""
    here = ratio(best, baseline, space)
    if not differ(best, baseline, space):
        return None
    for other in feature_spaces([run.result for run in (*best.runs, *baseline.runs)]):
        there = ratio(best, baseline, other)
        if differ(best, baseline, other) and (there < 1) != (here < 1):
            return (
                f"mixed: {_comparison(name, here, baseline.full_name)} by "
                f"{_by(space)}, but {_relation(there)} by {_by(other)}"
            )
    return None


# ------------------------------------------------------------------ words


def _comparison(name: str, times: float, other: str) -> str:
    """times: the distance of `name` in units of that of `other`."""
    side = "to" if times <= 1 else "from"
    if abs(1 - times) < 0.005:
        return f"no difference: {name} is as near to clean images as {other}"
    if abs(1 - times) < SMALL:
        return (
            f"no difference: {name} is {_relation(times)} {side} clean images than {other}, "
            f"which is less than {100 * SMALL:.0f} % and may be chance"
        )
    if times >= 2:
        return f"{name} is {_relation(times)} from clean images as {other}"
    return f"{name} is {_relation(times)} {side} clean images than {other}"


def _relation(times: float) -> str:
    if times >= 2:
        return f"{times:.1f} times as far"
    return f"{100 * abs(1 - times):.0f} % {'nearer' if times <= 1 else 'farther'}"


def _by(space: str) -> str:
    return "raw pixels" if space == "pixels" else f"{label(space)} features"


def _switched_off(run: Run) -> str:
    match run.metrics.get("data_look_clean"):
        case True:
            return "regularizer off: the data look clean, so this is plain training"
        case False:
            return "regularizer off (weight 0), though the data look noisy: this is plain training"
    return "regularizer off (weight 0): this is plain training"


def _why_missing(run: Run, runs: Sequence[Run]) -> str:
    name, steps = _name(run, runs), run.config.get("steps")
    if run.metrics:
        return f"{name} was not measured, since no images were generated (--samples 0)"
    step = max((row.get("step", 0) for row in run.log), default=0)
    return f"{name} is not finished" + (f" (step {step:,} of {steps:,})" if steps else "")


def _why_incomparable(runs: Sequence[Run]) -> str | None:
    """None if the distances of these runs can be compared."""
    if len(compared_with(runs)) > 1:
        return "some runs were measured against clean images, others against their training images"
    differing = [key for key in _DATA if len({str(run.config.get(key)) for run in runs}) > 1]
    if differing:
        return f"the runs differ in {_join(differing)}"
    counts = sorted({run.result["samples"] for run in runs if "samples" in run.result})
    if len(counts) > 1:
        numbers = _join([f"{count:,}" for count in counts])
        return f"distances depend on the number of images, and the runs have {numbers}"
    return None


def _details(
    subject: Method, baseline: Method, runs: Sequence[Run], with_names: bool = False
) -> tuple[str, ...]:
    """Noise, captions and wall time of the subject against the baseline's."""
    one, other = (f" for {m.name}" if with_names else "" for m in (subject, baseline))
    clauses = []
    for what, path, shown in (
        ("residual noise", ("residual_noise",), _two_digits),
        ("captions right", ("match", "both"), _percent),
        ("CLIP score", ("clip", "clip_score"), _two_digits),
    ):
        own, others = subject.values(*path), baseline.values(*path)
        if own and others:
            note = _reference_noise(subject, mean(own)) if what == "residual noise" else ""
            clauses.append(
                f"{what} {shown(mean(own))}{one} against {shown(mean(others))}{other}{note}"
            )
    times = [[wall_seconds(run, runs) for run in method.runs] for method in (subject, baseline)]
    if all(seconds is not None and seconds >= SHORT for seconds in times[0] + times[1]):
        factor = mean(times[0]) / mean(times[1])
        same = abs(factor - 1) < 0.05
        clauses.append("the same wall time" if same else f"{factor:.1f} times the wall time")
    return tuple(clauses)


def _noise_of_one(method: Method, compared: str, training: Method | None = None) -> tuple[str, ...]:
    """compared: what kind of images the reference is."""
    noise, reference = (
        method.values(key) for key in ("residual_noise", "residual_noise_reference")
    )
    if not (noise and reference):
        return ()
    own, target = _two_digits(mean(noise)), _two_digits(mean(reference))
    dirty = training.values("residual_noise") if training else []
    if dirty:
        return (f"residual noise {own} against {_two_digits(mean(dirty))} ({compared} {target})",)
    return (f"residual noise {own} ({compared} {target})",)


def _reference_noise(method: Method, own: float) -> str:
    """The estimate takes sharp edges for noise, so clean images have some too."""
    reference = method.values("residual_noise_reference")
    if not reference:
        return ""
    smoother = "; less is smoother than they are" if own < mean(reference) else ""
    kind = method.runs[0].compared_with
    return f" ({kind} images {_two_digits(mean(reference))}{smoother})"


def _evidence(space: str, method: Method, other: Method) -> str:
    name = "FID" if space == "inception" else f"Fréchet distance ({label(space)})"
    distances = f"{number(method.distance(space))} against {number(other.distance(space))}"
    text = f"{name} to clean images: {distances} for {other.name}"
    result, seeds = method.runs[0].result, len(method.runs)
    if {"samples", "reference"} <= set(result):
        text += (
            f"; {result['samples']:,} generated images, {result['reference']:,} clean ones, "
            f"{'one seed' if seeds == 1 else f'mean of {seeds} seeds'}"
        )
    if space != "pixels" and all(m.values("pixels", "frechet") for m in (method, other)):
        pixels = [number(m.distance("pixels")) for m in (method, other)]
        text += f". In raw pixels: {pixels[0]} against {pixels[1]}"
    return f"{text}."


def _training_evidence(space: str, method: Method) -> str:
    """How near the training data are, if that was measured."""
    training = _training_data(method)
    if not training.values(space, "frechet"):
        return ""
    text = f" Training data: {number(training.distance(space))}"
    if training.distance(space) < (1 - SMALL) * method.distance(space):
        return f"{text}, which is nearer; more training steps may help."
    return f"{text}."


def _few(method: Method) -> tuple[str, ...]:
    count = method.runs[0].result.get("samples", FEW)
    return (f"only {count} images were measured, so this is a hint",) if count < FEW else ()


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _name(run: Run, runs: Sequence[Run]) -> str:
    return run.objective if len(runs) == 1 else run.name


# ------------------------------------------------------------------ facts


def _diverged(run: Run) -> bool:
    """Whether its images, or their distances, are not finite."""
    distances = [part["frechet"] for part in run.result.values() if is_space(part)]
    return bool(run.metrics.get("diverged")) or not all(map(math.isfinite, distances))


def _common_space(methods: Sequence[Method]) -> str | None:
    return headline_space(feature_spaces([run.result for m in methods for run in m.runs]))
