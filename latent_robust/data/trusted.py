"""The samples that the user vouches for: `--trusted`.

They are clean, and few: 20 to 100. Other samples are judged by them (audit/trusted.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from latent_robust.core import derive_generator
from latent_robust.errors import InputError, did_you_mean

from .sources.spec import existing_path

LEAST = 10  # fewer say nothing
FORMS = {"names": "names:FILE (names of samples in the data, one a line)", "spare": "spare:N"}


@dataclass(frozen=True)
class TrustedSpec:
    """A parsed `--trusted`.

    names: a file with the names of samples in the data. spare: this many samples of the data, drawn
    at random, which `--contamination` leaves clean; for experiments. data: the specification of
    other data, all of which is trusted. One of the three is given.
    """

    names: Path | None = None
    spare: int | None = None
    data: str | None = None


def parse_trusted(spec: str, contamination: str) -> TrustedSpec:
    """Raises InputError for a missing file, and for spare:N without a contamination to spare from.

    Other data are checked by whoever opens them.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "names" and colon:
        return TrustedSpec(names=existing_path(rest, FORMS, folder=False))
    if kind == "spare" and colon:
        if not rest.isdecimal() or int(rest) < LEAST:
            raise InputError(f"--trusted spare:N needs a whole number >= {LEAST}, got {rest!r}")
        if contamination == "none":
            raise InputError(
                "--trusted spare:N is for experiments, where it spares N samples from "
                "--contamination; give a folder of images that you vouch for, or names:FILE"
            )
        return TrustedSpec(spare=int(rest))
    return TrustedSpec(data=spec)


def trusted_indices(spec: TrustedSpec, names: list[str], seed: int) -> list[int]:
    """The trusted samples of the data itself, ascending. names: of all its samples.

    Raises InputError for a name that no sample has, for fewer than LEAST samples, and if nothing
    would be left to judge.
    """
    if spec.spare is not None:
        order = torch.randperm(len(names), generator=derive_generator(seed, "trusted"))
        chosen = order[: spec.spare].tolist()
    elif spec.names is not None:
        chosen = _named(spec.names, names)
    else:
        return []
    refuse_unfit(len(chosen), len(names) - len(chosen))
    return sorted(chosen)


def refuse_unfit(trusted: int, others: int) -> None:
    """Raises InputError if there are too few trusted samples, or no others."""
    if trusted < LEAST:
        raise InputError(
            f"--trusted needs at least {LEAST} samples that you vouch for, better 50; got {trusted}"
        )
    if others < 1:
        raise InputError("every sample is trusted: nothing is left to judge; leave out --trusted")


def _named(file: Path, names: list[str]) -> list[int]:
    try:
        wanted = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the names in {file}: {error}") from error
    wanted = list(dict.fromkeys(filter(None, map(str.strip, wanted))))
    places = {name: index for index, name in enumerate(names)}
    for name in wanted:
        if name not in places:
            near = did_you_mean(name, names) or "; the names are those of manifest.jsonl"
            raise InputError(f"{file}: the data has no sample {name!r}{near}")
    return [places[name] for name in wanted]
