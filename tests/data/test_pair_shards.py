import json
import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_robust.data import open_pairs
from latent_robust.errors import InputError


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def offsets(path: Path) -> dict[str, int]:
    """Name of a member -> position of its header, in bytes."""
    with tarfile.open(path) as tar:
        return {info.name: info.offset for info in tar}


def names(pairs) -> list[str]:
    return [pairs.name(index) for index in range(len(pairs))]


def as_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def samples(encode, noise):
    """(keys) -> an image member and a caption member for each key."""

    def make(*keys: int) -> dict[str, bytes]:
        members = {}
        for key in keys:
            members[f"{key:03}.png"] = encode(noise(seed=key))
            members[f"{key:03}.txt"] = f"caption {key}".encode()
        return members

    return make


class Canary:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_members_become_pairs(tmp_path, encode, noise):
    image = encode(noise())
    path = write_tar(
        tmp_path / "a.tar",
        {
            "./dir/000.PNG": image,
            "./dir/000.txt": b"text\n",
            "./dir/000.json": b"not read, for there is a text",
            "001.json": json.dumps({"caption": "from json", "url": "x"}).encode(),
            "001.jpg": encode(noise(), "JPEG"),
            "002.webp": encode(noise(), "WEBP"),
            "002.caption": b"from caption",
            "003.png": image,
            "004.txt": b"alone",
            "005.png": image,
            "005.json": b"{broken",
            "006.png": image,
            "006.txt": "grün".encode("latin-1"),
            "007.png": b"broken",
            "007.mask.png": image,
            "008.pkl": pickle.dumps(Canary()),
            "008.pth": pickle.dumps(Canary()),
            "009.cls": b"3",
        },
    )
    pairs = open_pairs(f"wds:{path}", max_bad_fraction=0.5)
    assert dict(zip(names(pairs), pairs.captions, strict=True)) == {
        "a.tar/dir/000.PNG": "text",
        "a.tar/001.jpg": "from json",
        "a.tar/002.webp": "from caption",
        "a.tar/003.png": "",
    }
    assert pairs.without_caption == ["a.tar/003.png"]
    assert pairs.without_image == ["a.tar/004.txt"]
    reasons = {row["name"]: row["reason"] for row in pairs.quarantine}
    assert list(reasons) == ["a.tar/005.png", "a.tar/006.png", "a.tar/007.png"]
    assert reasons["a.tar/005.png"].startswith("its caption a.tar/005.json is not JSON")
    assert reasons["a.tar/006.png"].startswith("its caption is not UTF-8")
    assert pairs.ignored == 4  # mask, .pkl, .pth, .cls
    assert pairs.summary() == (
        "4 pairs, 3 quarantined, 1 image without a caption, 1 caption without an image"
    )
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).image(0), as_tensor(noise()))


def test_caption_column_is_of_the_json(tmp_path, encode, noise):
    members = {
        "0.png": encode(noise()),
        "0.txt": b"text",
        "0.json": json.dumps({"caption": "a", "title_en": "b"}).encode(),
    }
    spec = f"wds:{write_tar(tmp_path / 'a.tar', members)}"
    assert open_pairs(spec).captions == ["text"]
    assert open_pairs(spec, caption_column="title_en").captions == ["b"]
    with pytest.raises(
        InputError, match=r"'titel_en' .*mean 'title_en'\? available columns: caption, ti"
    ):
        open_pairs(spec, caption_column="titel_en")


def test_folders_and_patterns_of_shards(tmp_path, samples):
    for shard in range(8, 12):
        write_tar(tmp_path / f"s-{shard:03}.tar", samples(shard))
    expected = [f"s-{i:03}.tar/{i:03}.png" for i in range(8, 12)]
    for pattern in ("", "/s-*.tar", "/s-{008..011}.tar", "/s-{008,009,010,011}.tar", "/s-0{0,1}*"):
        pairs = open_pairs(f"wds:{tmp_path}{pattern}")
        assert names(pairs) == expected
        assert pairs.captions == [f"caption {i}" for i in range(8, 12)]
    assert names(open_pairs(f"wds:{tmp_path}", limit=3)) == expected[:3]
    with pytest.raises(InputError, match=r"2 of 6 shards .* missing, for example: .*s-012\.tar, "):
        open_pairs(f"wds:{tmp_path}/s-{{008..013}}.tar")
    with pytest.raises(InputError, match=r"no such folder or file"):
        open_pairs(f"wds:{tmp_path}/t-*.tar")


def test_the_fingerprint_does_not_depend_on_the_path(tmp_path, samples):
    members = samples(1, 2)
    one = open_pairs(f"wds:{write_tar(tmp_path / 'one/a.tar', members)}")
    two = open_pairs(f"wds:{write_tar(tmp_path / 'two/a.tar', members).parent}")
    assert one.fingerprint() == two.fingerprint()
    assert one.checksum(0) == two.checksum(0)


def test_truncated_shard_is_quarantined_and_its_complete_members_are_used(tmp_path, samples):
    whole = write_tar(tmp_path / "whole.tar", samples(0, 1, 2))
    cut = tmp_path / "shards/cut.tar"
    cut.parent.mkdir()
    starts = offsets(whole)
    data = whole.read_bytes()

    def pairs_of(length: int):
        cut.write_bytes(data[:length])
        return open_pairs(f"wds:{cut}", max_bad_fraction=0.7)

    # Cut inside the third image: 512 bytes of header and 100 bytes of data remain.
    pairs = pairs_of(starts["002.png"] + 612)
    assert names(pairs) == ["cut.tar/000.png", "cut.tar/001.png"]
    assert [row["name"] for row in pairs.quarantine] == ["cut.tar", "cut.tar/002.png"]
    assert "unexpected end of data" in pairs.quarantine[0]["reason"]
    assert pairs.quarantine[1]["reason"] == "the shard ends in the middle of this file"
    # Cut inside a header, and between two members: tarfile reports neither.
    for length, reason in ((100, "no valid header at byte"), (0, "the file is truncated")):
        pairs = pairs_of(starts["002.png"] + length)
        assert names(pairs) == ["cut.tar/000.png", "cut.tar/001.png"]
        ((name, said),) = (row.values() for row in pairs.quarantine)
        assert name == "cut.tar"
        assert reason in said
    # Cut after the image: the image is kept without its caption.
    pairs = pairs_of(starts["002.txt"] + 100)
    assert pairs.without_caption == ["cut.tar/002.png"]


@pytest.mark.parametrize("damaged", ["000.png", "001.png"])
def test_members_after_a_damaged_header_are_used(tmp_path, samples, damaged):
    path = write_tar(tmp_path / "a.tar", samples(0, 1, 2))
    data = bytearray(path.read_bytes())
    data[offsets(path)[damaged] + 50] ^= 0xFF
    path.write_bytes(data)
    pairs = open_pairs(f"wds:{path}", max_bad_fraction=0.5)
    assert names(pairs) == [
        f"a.tar/{name}" for name in ("000.png", "001.png", "002.png") if name != damaged
    ]
    assert [row["name"] for row in pairs.quarantine] == ["a.tar"]
    assert pairs.without_image == [f"a.tar/{damaged[:3]}.txt"]


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x1f\x8b" + bytes(range(256)) * 20])
def test_a_file_that_is_no_tar_is_quarantined(tmp_path, samples, content):
    write_tar(tmp_path / "good.tar", samples(0, 1))
    (tmp_path / "bad.tar").write_bytes(content)
    pairs = open_pairs(f"wds:{tmp_path}", max_bad_fraction=0.34)
    assert len(pairs) == 2
    assert [row["name"] for row in pairs.quarantine] == ["bad.tar"]
    with pytest.raises(InputError, match=r"1 of 1 pairs .*at least one good .*bad\.tar"):
        open_pairs(f"wds:{tmp_path}/bad.tar", max_bad_fraction=1)


def test_negative_size_does_not_hang(tmp_path, samples):
    path = write_tar(tmp_path / "a.tar", samples(0, 1))
    start = offsets(path)["001.png"]
    data = bytearray(path.read_bytes())
    # GNU tar's size field: 12 bytes, two's complement. The size points to the member before.
    data[start + 124 : start + 136] = (-2048).to_bytes(12, "big", signed=True)
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = f"{sum(data[start : start + 512]):06o}\0 ".encode()
    path.write_bytes(data)
    pairs = open_pairs(f"wds:{path}", max_bad_fraction=0.5)
    assert names(pairs) == ["a.tar/000.png"]
    assert "negative size" in pairs.quarantine[0]["reason"]


def test_links_and_duplicates_are_quarantined(tmp_path, samples):
    path = write_tar(tmp_path / "a.tar", samples(0))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        twin = tarfile.TarInfo("000.png")
        tar.addfile(twin, BytesIO(b""))
    pairs = open_pairs(f"wds:{path}", max_bad_fraction=0.7)
    assert names(pairs) == ["a.tar/000.png"]
    reasons = [row["reason"] for row in pairs.quarantine]
    assert reasons[0].startswith("appears twice in this shard")
    assert reasons[1].startswith("a link")


def test_no_images(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"photo.1.jpg": b"", "x.pkl": b""})
    with pytest.raises(InputError, match=r"no images in .*\(2 other members\).*key has no dot"):
        open_pairs(f"wds:{path}")
    path.unlink()
    with pytest.raises(InputError, match=r"no shards in .*ends in \.tar"):
        open_pairs(f"wds:{tmp_path}")


def test_nothing_is_written_and_nothing_changed(tmp_path, samples, tree_hash):
    write_tar(tmp_path / "a.tar", samples(0, 1))
    before = tree_hash(tmp_path)
    open_pairs(f"wds:{tmp_path}").image(1)
    assert tree_hash(tmp_path) == before
