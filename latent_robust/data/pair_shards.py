"""Pairs in WebDataset shards: tar files in which `key.jpg` and `key.txt` are one sample.

Only pictures, text and JSON are read, where they lie; pickles and other members are counted.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from latent_robust.errors import InputError

from .decode import BadPicture
from .folder import EXTENSIONS
from .pair_list import CAPTION_COLUMNS, PairList, find_caption_column
from .tar_index import Member, index_tar, read_member

CAPTIONS = (".txt", ".caption", ".json")  # the first that is there wins

# As in the webdataset library, the extension begins at the first dot of the last part.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./]+)(?P<extension>\.[^/]*)", re.DOTALL)

Sample = dict[str, Member]  # extension -> member


def list_shards(
    shards: Sequence[Path], spec: str, caption_column: str | None, limit: int | None
) -> PairList:
    """In the order of shards and members. caption_column: of the JSON members, before all text."""
    pairs = PairList(read_member)
    fields: set[str] = set()
    for sample, picture in islice(_pictures(shards, pairs), limit):
        try:
            pairs.add(picture, picture.name, _caption(sample, caption_column, fields))
        except (BadPicture, ValueError) as error:
            pairs.refuse(picture.name, f"its caption {error}")
    if not pairs.keys and not pairs.quarantine:
        raise InputError(
            f"no pictures in {spec} ({pairs.ignored} other members); a sample is KEY.jpg (or "
            "another picture) with KEY.txt, KEY.caption or KEY.json, and a key has no dot"
        )
    if caption_column is not None:
        find_caption_column(fields, caption_column, f"the JSON members of {spec}")
    return pairs


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


def _pictures(shards: Sequence[Path], pairs: PairList) -> Iterator[tuple[Sample, Member]]:
    """Of each picture its sample. What is wrong, alone or ignored is written to `pairs`."""
    place = os.path.commonpath([shard.parent for shard in shards])
    for shard in shards:
        label = shard.relative_to(place).as_posix()
        members, damage = index_tar(shard, label)
        if damage:
            pairs.refuse(label, damage)
        for sample in _samples(members, pairs):
            pictures = [sample[extension] for extension in sample if extension in EXTENSIONS]
            if not pictures:
                pairs.without_picture.append(next(iter(sample.values())).name)
            for picture in pictures:
                yield sample, picture


def _samples(members: Sequence[Member], pairs: PairList) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for member in members:
        parts = _MEMBER.fullmatch(member.name)
        extension = parts["extension"].lower() if parts else ""
        if extension not in EXTENSIONS and extension not in CAPTIONS:
            pairs.ignored += 1
            continue
        sample = samples.setdefault(parts["key"], {})
        if extension in sample:
            pairs.refuse(member.name, "twice in this shard; the first one is used")
        else:
            sample[extension] = member
    return list(samples.values())


def _caption(sample: Sample, caption_column: str | None, fields: set[str]) -> Any:
    """fields: gathers the names in the JSON members read. Raises BadPicture, ValueError."""
    here = [extension for extension in CAPTIONS if extension in sample]
    if caption_column is not None:
        here = [extension for extension in here if extension == ".json"]
    if not here:
        return None
    data = read_member(sample[here[0]])
    if here[0] != ".json":
        return data
    try:
        record = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{sample['.json'].name} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{sample['.json'].name} is not a JSON object")
    fields.update(record)
    columns = CAPTION_COLUMNS if caption_column is None else [caption_column]
    return next((record[column] for column in columns if column in record), None)
