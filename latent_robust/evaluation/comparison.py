"""What a report says about the images that its numbers compare with.

Clean images exist only if the contamination was made on purpose, or if the user gave a reference.
Otherwise distances are to the training images, dirt included, and less is not better.
"""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run, compared_with
from .tables import Better, Column, number


def introduction(runs: Sequence[Run]) -> str:
    """How to read the numbers, in two or three sentences; "" if `caution` says it."""
    kinds = compared_with(runs)
    if kinds == {"training"}:
        return ""
    text = (
        "A good model generates images that are as clean as the clean ones, and as varied. Models "
        "were trained on the training data alone; the clean images only serve to measure."
    )
    if "training" in kinds:
        text += (
            " Some of these runs were measured against clean images, the others against their "
            "training images; each row of the table says which."
        )
    return text


def heading(runs: Sequence[Run]) -> str:
    kinds = compared_with(runs)
    if not kinds:
        return "Measured against captions"
    if len(kinds) > 1:
        return "Measured against clean or against training images"
    return f"Measured against {'the training' if kinds == {'training'} else 'clean'} images"


def caution(runs: Sequence[Run]) -> str:
    """A warning to print above the table; "" if all runs were measured against clean images."""
    kinds = compared_with(runs)
    if kinds == {"training"}:
        return (
            "No clean reference was given (--reference), so distances are to the training images: "
            "a small one may mean that the dirt was learned. Nothing is marked as best."
        )
    if "training" in kinds:
        return (
            "Rows measured against training images have no clean reference: a small distance may "
            "mean that the dirt was learned. They cannot be compared with the other rows, and "
            "nothing is marked as best."
        )
    return ""


def arrows_note(columns: Sequence[Column]) -> str:
    """What the signs in these column titles mean; "" if there are none."""
    meanings = {
        Better.LESS: "less is better",
        Better.MORE: "more is better",
        Better.REFERENCE: "best near this value",
    }
    used = {column.better for column in columns}
    notes = [f"{sign} {meaning}" for sign, meaning in meanings.items() if sign in used]
    return f"{', '.join(notes)}. Marked: the best value, unless two are equal." if notes else ""


def table_note(runs: Sequence[Run]) -> str:
    """What the columns mean, and how many images were measured."""
    notes = _distance_notes(runs) if compared_with(runs) else []
    if any("match" in run.result for run in runs):
        notes.append("Match: share of the generated images that show what their captions say.")
    if any("clip" in run.result for run in runs):
        models = sorted({r.result["clip"].get("model", "CLIP") for r in runs if "clip" in r.result})
        notes.append(
            f"CLIP: cosine of image and caption in the features of {' and of '.join(models)}; "
            "the score is 100 times that, with negative values as 0."
        )
    if any("seconds" in run.metrics for run in runs):
        audited = any(run.facts.needs_audit for run in runs)
        auditor = ", including a trained auditor" if audited else ""
        notes.append(f"Wall time: of training{auditor}, as measured on the machine that ran it.")
    return " ".join(notes)


def _distance_notes(runs: Sequence[Run]) -> list[str]:
    kinds = compared_with(runs)
    real = next(iter(kinds)) if len(kinds) == 1 else "reference"
    results = [run.metrics["metrics"] for run in runs if run.measured]
    noise = {r["residual_noise_reference"] for r in results if "residual_noise_reference" in r}
    counts = {(r["samples"], r["reference"]) for r in results if {"samples", "reference"} <= set(r)}
    value = f" ({real} images: {number(noise.pop())})" if len(noise) == 1 else ""
    best = " Best near the value of clean images." if real == "clean" else ""
    notes = [
        f"FD, FID: Fréchet distance to {real} images in the named features; KD, KID: kernel "
        "distance.",
        f"Noise: standard deviation of the noise, estimated from each image alone{value}.{best}",
        f"Precision: share of generated images that resemble {real} ones. Recall: share of {real} "
        "images that resemble generated ones; noise raises it.",
        f"Nearest: distance to the most similar {real} image. Likeness: cosine to the most similar "
        "training image; 1 is a copy.",
    ]
    if any(run.metrics.get("floors") for run in runs):
        notes.append("Gray rows are for comparison: the training images themselves.")
    if len(counts) == 1:
        generated, reference = counts.pop()
        notes.append(f"{generated:,} generated images, {reference:,} {real} ones.")
    return notes
