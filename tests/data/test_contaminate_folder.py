import json

import pytest
import torch

from latent_robust.data import (
    ContaminatedImages,
    contaminate_folder,
    open_images,
    parse_contamination,
)
from latent_robust.data.contamination.export import _file_name
from latent_robust.data.contamination.kinds.image import to_bytes
from latent_robust.errors import InputError

DIRTY = parse_contamination(
    [
        "gaussian:fraction=0.9,sigma=0.2",
        "blocks:fraction=0.3,size=0.3",
        "jpeg:fraction=0.2,quality=9",
    ]
)


@pytest.fixture
def images(zoo):
    return open_images(str(zoo), size=8, channels=3, max_bad_fraction=1)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folder_holds_the_samples_and_the_manifest(images, tmp_path):
    contaminate_folder(images, DIRTY, 5, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    samples = ContaminatedImages(images, DIRTY, 5)
    written = open_images(str(out), size=8, channels=3)
    assert len(written) == len(list(out.glob("*.png"))) == 14
    for i in range(14):
        assert torch.equal(to_bytes(written.image(i)), to_bytes((samples[i]["sample"] + 1) / 2))
    assert rows(out / "manifest.jsonl") == list(samples.manifest())
    assert [row["original"] for row in rows(out / "metadata.jsonl")] == [
        images.name(i) for i in range(14)
    ]


@pytest.mark.parametrize("count, length", [(1, 6), (1_000_000, 6), (1_000_001, 7), (12_345_678, 8)])
def test_sorted_names_are_in_the_manifests_order(count, length):
    around = {10**k + step for k in range(8) for step in (-1, 0, 1)} | {count - 1}
    indices = sorted(index for index in around if 0 <= index < count)
    names = [_file_name(index, count) for index in indices]
    assert names == sorted(names)
    assert {len(name) for name in names} == {length + len(".png")}


def test_without_corruption_it_is_a_bit_equal_copy(images, tmp_path):
    contaminate_folder(images, [], 0, tmp_path / "out")
    copy = open_images(str(tmp_path / "out"), size=8, channels=3)
    assert all(torch.equal(copy.image(i), images.image(i)) for i in range(14))


def test_the_folder_opens_as_a_hugging_face_dataset(tmp_path):
    import datasets

    digits = open_images("digits", size=8, channels=1, limit=5)
    contaminate_folder(digits, DIRTY, 0, tmp_path / "out")
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert table["label"] == digits.labels.tolist()
    assert table["original"] == [digits.name(i) for i in range(5)]


def test_users_files_are_unchanged(images, zoo, tmp_path, tree_hash):
    before = tree_hash(zoo)
    contaminate_folder(images, DIRTY, 0, tmp_path / "out")
    with pytest.raises(InputError, match="not empty"):
        contaminate_folder(images, DIRTY, 0, zoo)
    assert tree_hash(zoo) == before


def test_target_is_a_file(images, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write to"):
            contaminate_folder(images, DIRTY, 0, out)
    assert (tmp_path / "file").read_text() == "mine"


# Tests may run as root and on an empty disk, so the operating system's error is simulated.
@pytest.mark.parametrize(
    "operation, error",
    [
        ("pathlib.Path.mkdir", PermissionError(13, "Permission denied")),
        ("pathlib.Path.mkdir", OSError(30, "Read-only file system")),
        ("PIL.Image.Image.save", OSError(28, "No space left on device")),
    ],
)
def test_read_only_or_full_disk(images, tmp_path, monkeypatch, operation, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(operation, refuse)
    with pytest.raises(InputError, match=error.strerror):
        contaminate_folder(images, DIRTY, 0, tmp_path / "out")
    assert not list(tmp_path.glob("out/manifest.jsonl"))
