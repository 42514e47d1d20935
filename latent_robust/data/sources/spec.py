"""The forms of `--data`. They are checked before any library or model is loaded.

So a typo in a path or a form is reported at once, with the nearest name that exists.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from latent_robust.errors import InputError, did_you_mean

IMAGE_FORMS = {
    "digits": "digits",
    "scenes": "scenes",
    "fashion-mnist": "fashion-mnist:DIR",
    "parquet": "parquet:FILE",
    "hf": "hf:NAME[:SPLIT]",
}
PAIR_FORMS = {
    "scenes": "scenes",
    "parquet": "parquet:FILE",
    "hf": "hf:NAME[:SPLIT]",
    "wds": "wds:SHARDS (a tar file, a folder of them, or a pattern)",
}
FORMS = {**IMAGE_FORMS, **PAIR_FORMS}  # of both kinds
BUILT_IN = ("digits", "scenes")


@dataclass(frozen=True)
class DataSpec:
    """A parsed specification.

    kind: a key of the forms, or "folder"; paths: the folder, file or shards on disk, empty for
    built-in datasets and the Hub; name, split: of a Hub dataset.
    """

    kind: str
    paths: tuple[Path, ...] = ()
    name: str = ""
    split: str = ""


def parse_spec(spec: str, forms: Mapping[str, str]) -> DataSpec:
    """forms: IMAGE_FORMS or PAIR_FORMS.

    Raises InputError, with the nearest name that exists, for a missing path and an unknown form.
    """
    kind, _, rest = spec.partition(":")
    if kind not in forms:
        return DataSpec("folder", (existing_path(spec, forms, folder=True),))
    if kind in BUILT_IN and spec == kind:
        return DataSpec(kind)
    if kind not in BUILT_IN and rest:
        match kind:
            case "fashion-mnist":
                return DataSpec(kind, (existing_path(rest, forms, folder=True),))
            case "parquet":
                return DataSpec(kind, (existing_path(rest, forms, folder=False),))
            case "wds":
                shards = find_shards(rest) or [existing_path(rest, forms, folder=False)]
                return DataSpec(kind, tuple(shards))
            case "hf":
                name, split = hub_name(rest)
                return DataSpec(kind, name=name, split=split)
    raise InputError(f"{spec!r} does not have the form {forms[kind]}")


def existing_path(given: str, forms: Mapping[str, str], folder: bool) -> Path:
    """The path `given`, if it is a folder (or, without `folder`, a file). Raises InputError.

    forms: the other specifications, by their first word, for the message.
    """
    path = Path(given).expanduser()
    if path.is_dir() if folder else path.is_file():
        return path
    remedy = f"a dataset is the path of a folder, or one of {', '.join(forms.values())}"
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
    """NAME[:SPLIT]  =>  name, split (default "train"). Raises InputError."""
    name, _, split = rest.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or Path(name).exists():
        raise InputError(
            f"{name!r} is not the name of a dataset on the Hugging Face Hub (OWNER/NAME); "
            "write only the path for a folder, and parquet:FILE for a parquet file"
        )
    return name, split or "train"


def find_shards(pattern: str) -> list[Path]:
    """The sorted shards of a tar file, a folder, or a pattern with {0..9}, {a,b}, * and ?.

    Empty if there is no such file. Raises InputError for a folder without shards, and for a shard
    that the braces name and that is missing.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        shards = sorted(path.rglob("*.tar"))
        if not shards:
            raise InputError(f"no shards in {pattern}: no file there ends in .tar")
        return shards
    if path.is_file():
        return [path]
    matches = {one: sorted(glob.glob(one, recursive=True)) for one in _expand(str(path))}
    missing = [one for one, files in matches.items() if not files]
    if missing and len(matches) > 1:
        raise InputError(
            f"{len(missing)} of {len(matches)} shards of {pattern} are missing, for example: "
            + ", ".join(missing[:3])
        )
    return list(dict.fromkeys(Path(file) for files in matches.values() for file in files))


def _expand(pattern: str) -> list[str]:
    """Expand {000..012} and {a,b} as a shell does. Returns at least one pattern."""
    choices = []
    for part in re.split(r"(\{[^{}]*\})", pattern):
        if numbers := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
            first, last = numbers.groups()
            choices.append([f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)])
        elif part.startswith("{") and "," in part:
            choices.append(part[1:-1].split(","))
        else:
            choices.append([part])
    return list(dict.fromkeys("".join(parts) for parts in product(*choices)))
