"""An index of the members of a tar file: where each begins and how long it is.

With it every member is read directly, in any order, without unpacking the file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from latent_robust.data.decode import BadImage

# What tarfile raises on damaged headers: its own errors and several others.
DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError)


class Member(NamedTuple):
    name: str  # "shard.tar/member"
    shard: Path
    offset: int  # of the data, in bytes
    size: int
    plain: bool  # an ordinary file, not a link and not sparse


def index_tar(path: Path, label: str) -> tuple[list[Member], str]:
    """Returns the members except folders, and what is wrong with the file ("" if nothing).

    label: prefix of the members' names. A damaged file gives all members with a readable header,
    before and after the damage.
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
    return _salvage(path, label), f"damaged, its readable members are used: {damage}"


def read_member(member: Member) -> bytes:
    """The bytes of one member. Raises BadImage."""
    if not member.plain:
        raise BadImage("a link or a sparse file in a tar shard; store the file itself")
    try:
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error
    if len(data) < member.size:
        raise BadImage("the shard ends in the middle of this file")
    return data


def _salvage(path: Path, label: str) -> list[Member]:
    """Members of a damaged file: `ignore_zeros` lets tarfile skip invalid headers."""
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in _members(tar, path, label):
                members.append(member)
    except DAMAGE:
        pass  # the caller reports the damage; the members up to here are good
    return members


def _members(tar: tarfile.TarFile, path: Path, label: str) -> Iterator[Member]:
    for info in tar:
        if info.size < 0:
            # tarfile would seek backwards and loop forever (CVE-2025-8194).
            raise tarfile.ReadError(f"{info.name} has a negative size")
        if not info.isdir():
            name = f"{label}/{info.name.removeprefix('./')}"
            plain = info.isreg() and not info.issparse()
            yield Member(name, path, info.offset_data, info.size, plain)


def _wrong_end(path: Path, end: int) -> str:
    """What is wrong at byte `end`, where tarfile stopped; "" if nothing.

    tarfile stops silently at an invalid header. A complete archive ends with a block of zeros.
    """
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return "the end-of-archive block is missing, so the file is truncated"
    return f"no valid header at byte {end}" if block.strip(b"\0") else ""
