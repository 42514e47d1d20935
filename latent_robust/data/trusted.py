"""The samples that the user vouches for: `--trusted`.

They are clean, and few: 20 to 100. Other samples are judged by them (audit/trusted.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from latent_robust.core import derive_generator
from latent_robust.errors import InputError, did_you_mean

from .sources.spec import existing_path

LEAST = 10  # fewer say nothing
FORMS = {"names": "names:FILE (names of samples in the data, one a line)", "spare": "spare:N"}


class Joinable(Protocol):
    """ImageSet and PairSet."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def joined(self, other):
        """These samples, then those of `other`."""
        ...


SomeData = TypeVar("SomeData", bound=Joinable)


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


def add_trusted(
    spec: str | None,
    data: SomeData,
    open_other: Callable[[str], SomeData],
    *,
    contamination: str,
    seed: int,
) -> tuple[SomeData, list[int]]:
    """=>  the data with the trusted samples, and the indices of these, ascending.

    spec: `--trusted`. open_other: opens other data, which then follow the data.

    Raises InputError as `parse_trusted`; for a name that no sample has; for fewer than LEAST
    trusted samples; and if nothing would be left to judge.
    """
    if spec is None:
        return data, []
    parsed, count = parse_trusted(spec, contamination), len(data)
    if parsed.data is not None:
        data = data.joined(open_other(parsed.data))
        chosen = list(range(count, len(data)))
    elif parsed.names is not None:
        chosen = sorted(_named(parsed.names, [data.name(index) for index in range(count)]))
    else:
        order = torch.randperm(count, generator=derive_generator(seed, "trusted"))
        chosen = sorted(order[: parsed.spare].tolist())
    if len(chosen) < LEAST:
        raise InputError(
            f"--trusted needs at least {LEAST} samples that you vouch for, better 50; got "
            f"{len(chosen)}"
        )
    if len(chosen) == len(data):
        raise InputError("every sample is trusted: nothing is left to judge; leave out --trusted")
    return data, chosen


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
