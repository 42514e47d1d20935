"""One HTML page about an audit of pictures. It needs no other file and no server."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latent_robust.data.decode import BadImage, opened, upright
from latent_robust.files import write_atomically
from latent_robust.pages import page_template
from latent_robust.subset import evenly_spaced

from .checks import CHECKS, Check
from .findings import DataAudit, Finding

WORST = 12  # pictures shown of each finding
LISTED = 600  # pictures with findings in the list
THUMB, SMALL = 176, 72  # pixels a side
BINS = 40
# Checks whose values are only yes or no have no histogram.
WITH_HISTOGRAM = (
    "noise", "jpeg", "blur", "enlarged", "block", "bars", "mark", "cut", "clipped", "dark",
    "bright",
)  # fmt: skip
KINDS = {
    "dirt": "Dirt",
    "copy": "Copies",
    "fit": "Size and shape",
    "text": "Captions",
    "note": "Worth knowing",
}


@dataclass(frozen=True)
class Bar:
    """Of a histogram: left edge, width and height in per cent; beyond: whether it is a finding."""

    left: float
    width: float
    height: float
    beyond: bool


@dataclass(frozen=True)
class Histogram:
    """threshold: its place in per cent; low, high: ends of the axis."""

    bars: Sequence[Bar]
    threshold: float
    low: str
    high: str


@dataclass(frozen=True)
class Example:
    name: str
    thumb: str  # a data URL, "" if the picture cannot be read
    reason: str


@dataclass(frozen=True)
class Section:
    finding: Finding
    examples: Sequence[Example]
    histogram: Histogram | None


def write_page(audit: DataAudit, out: Path) -> None:
    """Write the page to `out`."""
    titles = {check.key: check.title for check in CHECKS}
    found = {finding.check.key for finding in audit.findings}
    sections = [_section(audit, finding) for finding in audit.findings]
    quiet = [
        check
        for check in CHECKS
        if check.key not in found and np.isfinite(audit.columns.get(check.key, np.nan)).any()
    ]
    page = page_template("latent_robust.audit", "audit.html.j2").render(
        audit=audit,
        verdict=audit.verdict(),
        kinds=[
            (title, [s for s in sections if s.finding.check.kind == kind])
            for kind, title in KINDS.items()
        ],
        quiet=quiet,
        not_measured=[(titles.get(key, key), why) for key, why in audit.not_measured.items()],
        unreadable=audit.unreadable[:WORST],
        rows=json.dumps(_listed(audit)).replace("<", "\\u003c"),
        checks=[finding.check for finding in audit.findings],
        titles=titles,
        listed=LISTED,
    )
    write_atomically(out, page.encode("utf-8", "backslashreplace"))  # names that are not UTF-8


def _section(audit: DataAudit, finding: Finding) -> Section:
    check = finding.check
    chosen = finding.indices[:WORST]
    if np.ptp(finding.values) == 0:  # all alike: show some of everywhere
        chosen = finding.indices[evenly_spaced(len(finding), WORST)]
    examples = [
        Example(
            audit.names[index],
            thumbnail_url(audit, index, THUMB),
            reason_of(audit, check, index),
        )
        for index in chosen.tolist()
    ]
    return Section(finding, examples, _histogram(check, audit.columns[check.key]))


def reason_of(audit: DataAudit, check: Check, index: int) -> str:
    """Why a picture is found, in words."""
    own = audit.reasons.get((check.key, index))
    if own is not None:
        return own
    value = float(audit.columns[check.key][index])
    match check.key:
        case "jpeg":
            return f"quality {value:.0f}"
        case "noise":
            remains = float(audit.columns["remains"][index])
            left = f", {100 * value * remains:.1f} % at {audit.size} px" if remains < 1 else ""
            return f"noise of {100 * value:.1f} % of the range{left}"
        case "blur":
            return f"edges {value:.1f} px wide"
        case "enlarged":
            return f"highest frequencies {10**value:,.0f} times weaker"
        case "small":
            side = min(audit.columns["width"][index], audit.columns["height"][index])
            return f"{side:.0f} px, enlarged {1 + value:.1f} times"
        case "mark":
            return f"correlation {value:.2f}"
        case "block" | "bars" | "cut" | "clipped":
            return f"{100 * value:.0f} % {check.unit}"
        case "dark" | "bright":
            return f"brightness {value:.2f}"
    return ""


def thumbnail_url(audit: DataAudit, index: int, side: int) -> str:
    """A small JPEG of the picture as a data URL; "" if it cannot be read."""
    try:
        with opened(audit.read(index)) as image:
            small = upright(image, 3)
            small.thumbnail((side, side), Image.Resampling.BOX)
    except BadImage:
        return ""
    if max(small.size) < side // 2:  # pixels of small pictures are shown as squares
        factor = side // max(small.size)
        small = small.resize(
            (small.width * factor, small.height * factor), Image.Resampling.NEAREST
        )
    file = BytesIO()
    small.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _histogram(check: Check, values: np.ndarray) -> Histogram | None:
    known = values[np.isfinite(values)]
    if check.key not in WITH_HISTOGRAM or len(known) == 0:
        return None
    low, high = (float(v) for v in np.quantile(known, [0.0, 0.995]))
    low, high = min(low, check.threshold), max(high, check.threshold)
    if high <= low:
        return None
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    counts, edges = np.histogram(np.clip(known, low, high), BINS, (low, high))
    heights = np.sqrt(counts / counts.max())  # so that few are seen beside many
    width = 100 / BINS
    bars = [
        Bar(
            number * width,
            width,
            100 * float(height),
            check.finds(float(edges[number : number + 2].mean())),
        )
        for number, height in enumerate(heights)
        if height > 0
    ]
    threshold = 100 * (check.threshold - low) / (high - low)
    return Histogram(bars, threshold, f"{low + margin:.3g}", f"{high - margin:.3g}")


def _listed(audit: DataAudit) -> list[dict[str, Any]]:
    """The pictures with most findings, for the list that the page filters and sorts."""
    checks = {
        index: kept
        for index, found in audit.checks_of.items()
        if (kept := [check for check in found if check.kind != "note"])
    }
    chosen = sorted(checks, key=lambda index: (-len(checks[index]), index))[:LISTED]
    return [
        {
            "name": audit.names[index],
            "thumb": thumbnail_url(audit, index, SMALL),
            "found": {check.key: reason_of(audit, check, index) for check in checks[index]},
            "caption": audit.captions[index][:200],
        }
        for index in chosen
    ]
