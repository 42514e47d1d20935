"""What `--data` may say. Checked without opening anything, so that a typo is told at once."""

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
BUILT_IN = ("digits", "scenes")


@dataclass(frozen=True)
class DataSpec:
    """kind: a key of the forms, or "folder". paths: the folder, file or shards on disk; empty for
    built-in sets and the Hub. name, split: of a Hub data set."""

    kind: str
    paths: tuple[Path, ...] = ()
    name: str = ""
    split: str = ""


def parse_spec(spec: str, forms: Mapping[str, str]) -> DataSpec:
    """forms: IMAGE_FORMS or PAIR_FORMS. Raises InputError, with the nearest thing that exists, for
    a path that does not exist and a form that is not known."""
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
    raise InputError(f"{spec!r} is not of the form {forms[kind]}")


def existing_path(given: str, forms: Mapping[str, str], folder: bool) -> Path:
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
    """NAME[:SPLIT]  =>  name, split ("train" by default)."""
    name, _, split = rest.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or Path(name).exists():
        raise InputError(
            f"{name!r} does not name a data set of the Hugging Face Hub (OWNER/NAME); "
            "a folder is given by its path alone, a parquet file as parquet:FILE"
        )
    return name, split or "train"


def find_shards(pattern: str) -> list[Path]:
    """A tar file, a folder of them, or a pattern with {0..9}, {a,b}, * and ?; sorted.

    Nothing if there is no such file. Raises InputError: a folder without shards, shards that the
    braces announce and that are missing.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        shards = sorted(path.rglob("*.tar"))
        if not shards:
            raise InputError(f"no shards in {pattern}: no file there ends in .tar")
        return shards
    if path.is_file():
        return [path]
    found = {one: sorted(glob.glob(one, recursive=True)) for one in _expand(str(path))}
    missing = [one for one, files in found.items() if not files]
    if missing and len(found) > 1:
        raise InputError(
            f"{len(missing)} of {len(found)} shards of {pattern} are missing, the first: "
            + ", ".join(missing[:3])
        )
    return list(dict.fromkeys(Path(file) for files in found.values() for file in files))


def _expand(pattern: str) -> list[str]:
    """{000..012} and {a,b}, as shells do.  =>  at least one."""
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
