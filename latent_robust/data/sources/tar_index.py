"""Where the members of a tar file lie, so that each can be read without unpacking anything."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from latent_robust.data.decode import BadImage

# What tarfile raises on damaged headers, besides its own errors.
DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError)


class Member(NamedTuple):
    name: str  # with the shard's before it
    shard: Path
    offset: int  # of the data, in bytes
    size: int
    plain: bool  # data of its own: no link, no sparse file


def index_tar(path: Path, label: str) -> tuple[list[Member], str]:
    """label: put before the members' names.  =>  members except folders; what is wrong, or "".

    Of a damaged file all members whose headers can be found, before and after the damage.
    """
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            members += _members(tar, path, label)
            end = tar.offset
        damage = _wrong_end(path, end)
    except DAMAGE as error:
        damage = str(error) or type(error).__name__
    if not damage:
        return members, ""
    return _salvage(path, label), f"damaged, what can be read of it is used: {damage}"


def read_member(member: Member) -> bytes:
    """Raises BadImage."""
    if not member.plain:
        raise BadImage("a link or a sparse file in a tar shard; store the file itself")
    try:
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error
    if len(data) < member.size:
        raise BadImage("the shard ends within it")
    return data


def _salvage(path: Path, label: str) -> list[Member]:
    """`ignore_zeros` makes tarfile look for the next valid header after an invalid one."""
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in _members(tar, path, label):
                members.append(member)
    except DAMAGE:
        pass  # named by the caller; what was found until here is good
    return members


def _members(tar: tarfile.TarFile, path: Path, label: str) -> Iterator[Member]:
    for info in tar:
        if info.size < 0:
            # tarfile would go backwards, and around for ever (CVE-2025-8194).
            raise tarfile.ReadError(f"{info.name} has a negative size")
        if not info.isdir():
            name = f"{label}/{info.name.removeprefix('./')}"
            plain = info.isreg() and not info.issparse()
            yield Member(name, path, info.offset_data, info.size, plain)


def _wrong_end(path: Path, end: int) -> str:
    """tarfile ends without a word at an invalid header. A whole archive ends with zeros."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return "it has no end mark, so its end is missing"
    return f"no valid header at byte {end}" if block.strip(b"\0") else ""
