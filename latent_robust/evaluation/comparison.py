"""How a report says what its numbers were measured against.

Clean images are there only with contamination made on purpose, or with a reference that the user
gave. Else the distances are to the training images, dirt included, and the page must not read as
if less were better.
"""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run, compared_with
from .tables import number


def introduction(runs: Sequence[Run]) -> str:
    kinds = compared_with(runs)
    if kinds == {"clean"}:
        return (
            "A model learns from the training data alone and never sees the clean truth. It has "
            "learned well if what it draws looks like the truth: clean where the training data is "
            "dirty, and no less varied. The numbers below say how far it came, measured against "
            "clean images."
        )
    text = (
        "A model learns from the training data alone. It has learned well if what it draws is "
        "free of the dirt in the training data, and no less varied."
    )
    if kinds == {"training"}:
        text += (
            " There was nothing clean to measure against, so whether it is, your eyes must judge; "
            "the numbers below compare what it draws with the training images themselves."
        )
    elif kinds:
        text += (
            " Some of these runs could be measured against clean images, the others only against "
            "the training images themselves; each row of the table says which."
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
    """What keeps the table from being misread; "" if all runs were measured against the truth."""
    kinds = compared_with(runs)
    if kinds == {"training"}:
        return (
            "No clean reference was given, so closeness includes closeness to the dirt, and "
            "nothing is marked as best."
        )
    if "training" in kinds:
        return (
            "Rows measured against training images had no clean reference: their closeness "
            "includes closeness to the dirt. They cannot be compared with the other rows, and "
            "nothing is marked as best."
        )
    return ""


def table_note(runs: Sequence[Run]) -> str:
    """What the columns mean and how many images stand behind them."""
    notes = [_distance_note(runs)] if compared_with(runs) else []
    if any("match" in run.result for run in runs):
        notes.append("Match: the share of drawn images that show what their captions say.")
    if any("clip" in run.result for run in runs):
        models = sorted({r.result["clip"].get("model", "CLIP") for r in runs if "clip" in r.result})
        notes.append(
            f"CLIP: cosine of image and caption in the features of {' and of '.join(models)}; "
            "the score is 100 times that, with negative ones as 0."
        )
    return " ".join(notes)


def _distance_note(runs: Sequence[Run]) -> str:
    kinds = compared_with(runs)
    real = next(iter(kinds)) if len(kinds) == 1 else "reference"
    results = [run.metrics["metrics"] for run in runs if run.measured]
    noise = {r["residual_noise_reference"] for r in results if "residual_noise_reference" in r}
    counts = {(r["samples"], r["reference"]) for r in results if {"samples", "reference"} <= set(r)}
    clean = real == "clean"
    note = (
        f"Distances (FD, FID, KD, KID): smaller is {'better' if clean else 'closer'}. Precision: "
        f"the share of drawn images that could be {real} ones; recall: the share of {real} ones "
        "that could be drawn (noise raises it too, so read both). "
        f"Noise: blind estimate{', best near that of clean images' if clean else ''}"
    )
    if len(noise) == 1:
        note += f", {number(noise.pop())}" if clean else f" ({real} images: {number(noise.pop())})"
    note += (
        f". Nearest: distance to the most similar {real} image; likeness: cosine to the most "
        "similar training image, 1 being a copy."
    )
    if any(run.metrics.get("floors") for run in runs):
        note += " Rows in gray are yardsticks."
    if len(counts) == 1:
        drawn, reference = counts.pop()
        note += f" {drawn:,} drawn images against {reference:,} {real} ones."
    return note
