"""From a `--data` specification to a set of pictures."""

from __future__ import annotations

import re
from pathlib import Path

from latent_robust.errors import InputError, did_you_mean

from .folder import FolderSource
from .pictures import PictureSet, Source
from .scan import check_limits, refuse_too_many_bad

FORMS = {
    "digits": "digits",
    "scenes": "scenes",
    "fashion-mnist": "fashion-mnist:DIR",
    "parquet": "parquet:FILE",
    "hf": "hf:NAME[:SPLIT]",
}


def open_pictures(
    spec: str,
    *,
    size: int,
    channels: int,
    limit: int | None = None,
    max_bad_fraction: float = 0.05,
    offline: bool = False,
) -> PictureSet:
    """Every picture is decoded once here; bad ones are left out and named in `.quarantine`.

    spec: a folder, or one of FORMS; size: side in pixels; channels: 1 or 3; limit: the first so
    many of the source, bad ones included; max_bad_fraction: in [0, 1].

    Raises InputError: the specification, an unreadable source, no picture, too many bad ones.
    """
    if size < 1 or channels not in (1, 3):
        raise InputError(f"need size >= 1 and 1 or 3 channels, got {size} and {channels}")
    check_limits(limit, max_bad_fraction)
    source = _open(spec, limit, offline)
    pictures = PictureSet(source, spec, size=size, channels=channels, offline=offline)
    refuse_too_many_bad("pictures", spec, len(pictures), pictures.quarantine, max_bad_fraction)
    return pictures


def _open(spec: str, limit: int | None, offline: bool) -> Source:
    # The libraries of each source are imported only when it is used.
    kind, _, rest = spec.partition(":")
    match kind, rest:
        case "digits", "" if spec == "digits":
            from .arrays import digits

            return digits(limit)
        case "scenes", "" if spec == "scenes":
            from .scene_sources import ScenePictures

            return ScenePictures(limit)
        case "fashion-mnist", rest if rest:
            from .arrays import fashion_mnist

            return fashion_mnist(existing_path(rest, FORMS, folder=True), limit)
        case "parquet", rest if rest:
            from .table import read_parquet

            return read_parquet(existing_path(rest, FORMS, folder=False), limit)
        case "hf", rest if rest:
            from .table import read_hub

            name, split = hub_name(rest)
            return read_hub(name, split, offline, limit)
    if kind in FORMS:
        raise InputError(f"{spec!r} is not of the form {FORMS[kind]}")
    return FolderSource(existing_path(spec, FORMS, folder=True), limit)


def existing_path(given: str, forms: dict[str, str], folder: bool) -> Path:
    """forms: what else a specification may be, by its first word. Raises InputError."""
    path = Path(given).expanduser()
    if path.is_dir() if folder else path.is_file():
        return path
    remedy = f"a data set is the path of a folder, or {', '.join(forms.values())}"
    if path.exists():
        kind = "a file, not a folder" if folder else "a folder, not a file"
        raise InputError(f"{given} is {kind}; {remedy}")
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        siblings = []
    near = did_you_mean(path.name, siblings) or did_you_mean(given.partition(":")[0], forms)
    raise InputError(f"no such folder or file: {given!r}{near or ';'} {remedy}")


def hub_name(rest: str) -> tuple[str, str]:
    name, _, split = rest.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or Path(name).exists():
        raise InputError(
            f"{name!r} does not name a data set of the Hugging Face Hub (OWNER/NAME); "
            "a folder is given by its path alone, a parquet file as parquet:FILE"
        )
    return name, split or "train"
