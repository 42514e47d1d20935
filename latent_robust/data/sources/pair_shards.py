"""Pairs in WebDataset shards: tar files in which `key.jpg` and `key.txt` are one sample.

Only images, text and JSON are read, without unpacking the shard. Pickles and other members are
never opened, only counted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from latent_robust.data.decode import BadImage
from latent_robust.errors import InputError

from .folder import EXTENSIONS
from .pair_list import CAPTION_COLUMNS, PairList, find_caption_column
from .tar_index import Member, index_tar, read_member

CAPTIONS = (".txt", ".caption", ".json")  # of several, the first is used

# As in the webdataset library, the extension starts at the first dot of the file name.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./]+)(?P<extension>\.[^/]*)", re.DOTALL)

Sample = dict[str, Member]  # extension -> member


def list_shards(
    shards: Sequence[Path], spec: str, caption_column: str | None, limit: int | None
) -> PairList:
    """List the pairs in the order of shards and members.

    caption_column: a field of the JSON members; with it, text members are not read. Raises
    InputError if there is no image, or no JSON member has the field.
    """
    pairs = PairList(read_member)
    fields: set[str] = set()
    for sample, image in islice(_images(shards, pairs), limit):
        try:
            pairs.add(image, image.name, _caption(sample, caption_column, fields))
        except (BadImage, ValueError) as error:
            pairs.refuse(image.name, f"its caption {error}")
    if not pairs.keys and not pairs.quarantine:
        raise InputError(
            f"no images in {spec} ({pairs.ignored} other members); a sample is KEY.jpg (or "
            "another image) with KEY.txt, KEY.caption or KEY.json, and a key has no dot"
        )
    if caption_column is not None:
        find_caption_column(fields, caption_column, f"the JSON members of {spec}")
    return pairs


def _images(shards: Sequence[Path], pairs: PairList) -> Iterator[tuple[Sample, Member]]:
    """Yield each image with its sample. Damage, orphans and ignored members go to `pairs`."""
    root = os.path.commonpath([shard.parent for shard in shards])
    for shard in shards:
        label = shard.relative_to(root).as_posix()
        members, damage = index_tar(shard, label)
        if damage:
            pairs.refuse(label, damage)
        for sample in _samples(members, pairs):
            images = [sample[extension] for extension in sample if extension in EXTENSIONS]
            if not images:
                pairs.without_image.append(next(iter(sample.values())).name)
            for image in images:
                yield sample, image


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
            pairs.refuse(member.name, "appears twice in this shard; the first one is used")
        else:
            sample[extension] = member
    return list(samples.values())


def _caption(sample: Sample, caption_column: str | None, fields: set[str]) -> Any:
    """The caption as stored; None without one. Raises BadImage and ValueError.

    fields: the field names of every JSON member that is read are added to it.
    """
    extensions = [extension for extension in CAPTIONS if extension in sample]
    if caption_column is not None:
        extensions = [extension for extension in extensions if extension == ".json"]
    if not extensions:
        return None
    data = read_member(sample[extensions[0]])
    if extensions[0] != ".json":
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
