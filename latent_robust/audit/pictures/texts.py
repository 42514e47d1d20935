"""What is wrong with captions, as far as the texts alone tell."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# A caption that is a file name, a number, an address or one of these words says nothing.
# fmt: off
EMPTY_WORDS = frozenset({
    "image", "images", "img", "photo", "photos", "photograph", "picture", "pictures", "pic",
    "untitled", "unknown", "none", "null", "nan", "no", "caption", "description", "title", "a",
    "an", "the", "of", "stock", "thumbnail", "file", "screenshot", "default", "text",
})
# fmt: on
FILE_NAME = re.compile(r"^[\w\-. ]*\.(jpe?g|png|gif|webp|bmp|tiff?)$", re.IGNORECASE)
CAMERA_NAME = re.compile(r"^(img|dsc|dscn|dscf|pict|p|mvi|sam|photo|image)?[_\-\s]?\d{2,}$", re.I)
ADDRESS = re.compile(r"^(https?://|www\.)\S+$", re.IGNORECASE)
# A caption is called identical if at least this share of all, and this many, are the same.
SAME_SHARE, SAME_COUNT = 0.05, 10
USUAL_SCRIPT = 0.9  # share of the captions from which on another script is a finding


def is_empty_of_content(caption: str) -> bool:
    text = caption.strip()
    if FILE_NAME.match(text) or CAMERA_NAME.match(text) or ADDRESS.match(text):
        return True
    words = re.findall(r"[^\W_]+", text.lower())
    return all(word in EMPTY_WORDS or word.isdecimal() for word in words)


def script(caption: str) -> str:
    """The writing system of most of the letters, e.g. "LATIN"; "" without letters."""
    names = Counter(
        unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0]
        for letter in caption[:200]
        if letter.isalpha()
    )
    return names.most_common(1)[0][0] if names else ""


def find_problems(captions: Sequence[str]) -> list[dict[str, str]]:
    """For each caption the problems by name: "missing", "empty", "identical", "script", each with a
    reason. All captions missing is no problem: the data are pictures only."""
    counts = Counter(caption for caption in captions if caption)
    if not counts:
        return [{} for _ in captions]
    written = sum(counts.values())
    scripts = [script(caption) for caption in captions]
    common, most = Counter(filter(None, scripts)).most_common(1)[0] if any(scripts) else ("", 0)
    usual = common if most >= USUAL_SCRIPT * sum(map(bool, scripts)) else ""
    found: list[dict[str, str]] = []
    for caption, own_script in zip(captions, scripts, strict=True):
        problems: dict[str, str] = {}
        if not caption:
            problems["missing"] = "no caption"
        elif is_empty_of_content(caption):
            problems["empty"] = f"says nothing: {caption[:60]!r}"
        if counts[caption] >= max(SAME_COUNT, SAME_SHARE * written):
            problems["identical"] = f"{counts[caption]:,} pictures have it: {caption[:60]!r}"
        if usual and own_script and own_script != usual:
            problems["script"] = f"{own_script.lower()}, the others are {usual.lower()}"
        found.append(problems)
    return found
