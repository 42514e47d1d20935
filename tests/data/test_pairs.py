"""Pairs from folders and tables. Pairs from shards are in test_pair_shards.py."""

import hashlib
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latent_robust.data import open_pairs
from latent_robust.data import pairs as data_pairs
from latent_robust.data.decode import DECODER
from latent_robust.errors import InputError


@pytest.fixture
def folder(tmp_path, encode, noise) -> Path:
    """a.png to d.png, images (10, 12), and sub/e.png."""
    folder = tmp_path / "pairs"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a", "b", "c", "d", "sub/e"]):
        (folder / f"{name}.png").write_bytes(encode(noise((12, 10), seed=seed)))
    return folder


def write_jsonl(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def names(pairs) -> list[str]:
    return [pairs.name(index) for index in range(len(pairs))]


def captions(pairs) -> dict[str, str]:
    return dict(zip(names(pairs), pairs.captions, strict=True))


# Sidecars


def test_sidecars(folder):
    (folder / "a.txt").write_text("  a red square\n")
    (folder / "b.caption").write_text("\ufeffein grüner Kreis", encoding="utf-8")
    (folder / "c.txt").write_text("from .txt")
    (folder / "c.caption").write_text("from .caption")
    (folder / "d.txt").write_text(" \n")
    (folder / "sub/e.TXT").write_text("e")
    (folder / "x.txt").write_text("alone")
    (folder / "notes.md").write_text("")
    pairs = open_pairs(str(folder))
    assert captions(pairs) == {
        "a.png": "a red square",
        "b.png": "ein grüner Kreis",
        "c.png": "from .txt",
        "d.png": "",
        "sub/e.png": "e",
    }
    assert pairs.without_caption == ["d.png"]
    assert pairs.without_image == ["x.txt"]
    assert pairs.quarantine == []
    assert pairs.ignored == 2  # notes.md and the second caption of c
    assert pairs.summary() == (
        "5 pairs, 0 quarantined, 1 image without a caption, 1 caption without an image"
    )


def test_an_image_whose_caption_is_not_utf8_is_quarantined(folder):
    (folder / "a.txt").write_bytes("grün".encode("latin-1"))
    pairs = open_pairs(str(folder), max_bad_fraction=0.2)
    (row,) = pairs.quarantine
    assert row["name"] == "a.png"
    assert row["reason"].startswith("its caption is not UTF-8")
    assert names(pairs) == ["b.png", "c.png", "d.png", "sub/e.png"]


def test_folder_repeats(folder):
    (folder / "sub").rename(folder / "10_dog")
    assert open_pairs(str(folder)).repeats == [1] * 5
    pairs = open_pairs(str(folder), folder_repeats=True)
    assert dict(zip(names(pairs), pairs.repeats, strict=True))["10_dog/e.png"] == 10
    write_jsonl(folder / "10_dog/metadata.jsonl", {"file_name": "e.png", "text": "e", "repeats": 3})
    assert open_pairs(str(folder), folder_repeats=True).repeats == [30, 1, 1, 1, 1]
    (folder / "10_dog").rename(folder / "0_dog")
    with pytest.raises(InputError, match=r"0_dog: repeats must be a whole number >= 1, got '0'"):
        open_pairs(str(folder), folder_repeats=True)
    with pytest.raises(InputError, match=r"repeats in folder names need a folder"):
        open_pairs("parquet:x", folder_repeats=True)


# Metadata


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata(folder, kind):
    path = folder / f"metadata.{kind}"
    rows = [
        {"file_name": "a.png", "caption": "one, and two", "repeats": 2, "extra": "x"},
        {"file_name": "./sub/e.png", "caption": "line\nbreak", "repeats": None, "extra": "x"},
        {"file_name": "b.png", "caption": None, "repeats": None, "extra": "x"},
        {"file_name": "absent.png", "caption": "absent", "repeats": 1, "extra": "x"},
        {"file_name": "a.png", "caption": "again", "repeats": None, "extra": "x"},
    ]
    if kind == "jsonl":
        write_jsonl(path, *rows)
    elif kind == "csv":
        import csv

        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    pairs = open_pairs(str(folder), max_bad_fraction=0.2)
    assert list(zip(names(pairs), pairs.captions, pairs.repeats, strict=True)) == [
        ("a.png", "one, and two", 2),
        ("a.png", "again", 1),
        ("b.png", "", 1),
        ("c.png", "", 1),
        ("d.png", "", 1),
        ("sub/e.png", "line\nbreak", 1),
    ]
    assert pairs.without_caption == ["b.png", "c.png", "d.png"]
    (alone,) = pairs.quarantine
    assert alone == {"name": "absent.png", "reason": "cannot be read: No such file or directory"}
    assert pairs.without_image == []
    assert open_pairs(str(folder), limit=1, max_bad_fraction=0).quarantine == []
    assert pairs.ignored == 0


def test_composed_and_decomposed_unicode_names_match(folder):
    (folder / "a.png").rename(folder / "a\u0308.png")  # as macOS writes it
    write_jsonl(folder / "metadata.jsonl", {"file_name": "\u00e4.png", "text": "row"})
    pairs = open_pairs(str(folder))
    assert captions(pairs)["a\u0308.png"] == "row"
    assert pairs.quarantine == []


def test_metadata_of_a_subfolder_and_sidecars_combine(folder):
    write_jsonl(folder / "sub/metadata.jsonl", {"file_name": "e.png", "text": "row"})
    (folder / "sub/e.txt").write_text("sidecar")
    (folder / "a.txt").write_text("sidecar")
    pairs = open_pairs(str(folder))
    assert captions(pairs)["sub/e.png"] == "row"
    assert captions(pairs)["a.png"] == "sidecar"
    assert pairs.ignored == 1


def test_caption_column(folder):
    path = folder / "metadata.jsonl"
    write_jsonl(path, {"file_name": "a.png", "caption": "1", "text": "2", "keywords": "3"})
    assert open_pairs(str(folder)).captions[0] == "2"
    assert open_pairs(str(folder), caption_column="keywords").captions[0] == "3"
    with pytest.raises(
        InputError,
        match=r"'keyword' .*mean 'keywords'\? available columns: caption, .*keywords, text",
    ):
        open_pairs(str(folder), caption_column="keyword")
    write_jsonl(path, {"file_name": "a.png", "label": 3})
    with pytest.raises(
        InputError, match=r"no caption column .*available columns: file_name, label"
    ):
        open_pairs(str(folder))
    write_jsonl(path, {"filename": "a.png", "text": "a"})
    with pytest.raises(InputError, match=r"'file_name' .*did you mean 'filename'"):
        open_pairs(str(folder))
    path.unlink()
    with pytest.raises(InputError, match=r"'text' needs one of metadata"):
        open_pairs(str(folder), caption_column="text")


def test_two_metadata_files_in_one_folder_are_refused(folder):
    write_jsonl(folder / "metadata.jsonl", {"file_name": "a.png", "text": "a"})
    (folder / "metadata.csv").write_text("file_name,text\na.png,a\n")
    with pytest.raises(InputError, match=r"metadata.csv and metadata.jsonl are in one folder"):
        open_pairs(str(folder))


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "x", [2], float("nan"), float("inf")])
def test_repeats_must_be_whole_numbers_of_at_least_one(folder, repeats):
    write_jsonl(folder / "metadata.jsonl", {"file_name": "a.png", "text": "", "repeats": repeats})
    with pytest.raises(InputError, match=r"line 1: repeats must be a whole number >= 1, got"):
        open_pairs(str(folder))


def test_unusable_rows_are_quarantined(folder, tmp_path, encode, noise):
    (tmp_path / "outside.png").write_bytes(encode(noise()))
    write_jsonl(
        folder / "metadata.jsonl",
        {"file_name": "../outside.png", "text": "x"},
        {"file_name": str(tmp_path / "outside.png"), "text": "x"},
        {"file_name": "sub/../a.png", "text": "x"},
        {"file_name": None, "text": "x"},
        {"text": "x"},
        {"file_name": "a.png", "text": ["two", "captions"]},
        {"file_name": "b.png", "text": "\ud800"},
        {"file_name": "c.png", "text": "good"},
    )
    pairs = open_pairs(str(folder), max_bad_fraction=0.75)
    reasons = {row["name"]: row["reason"] for row in pairs.quarantine}
    assert list(reasons) == [*(f"metadata.jsonl, line {i}" for i in range(1, 6)), "a.png", "b.png"]
    assert all(
        "points outside the folder" in reasons[f"metadata.jsonl, line {i}"] for i in (1, 2, 3)
    )
    assert reasons["a.png"] == "its caption is a list, not text"
    assert captions(pairs) == {"c.png": "good", "d.png": "", "sub/e.png": ""}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n\n{"file', "line 3 is not JSON"),
        ("metadata.jsonl", '["a.png"]', "line 1 is not a JSON object"),
        ("metadata.jsonl", b"\xff\xfe", "not UTF-8"),
        ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2 has more cells than columns"),
        ("metadata.csv", 'file_name,text\na.png,"one\n', "not CSV after line 1"),
        ("metadata.parquet", b"PAR1", "as parquet"),
    ],
)
def test_metadata_that_cannot_be_read_says_where(folder, name, content, message):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        open_pairs(str(folder))


# Tables


@pytest.fixture
def table(encode, noise):
    from datasets import Dataset, Features, Image, Value

    images = [encode(noise(seed=i)) for i in range(4)]
    rows = {
        "image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)],
        "prompt": ["zero", None, "two", " three "],
        "style": ["a", "b", "c", "d"],
        "repeats": [1, 2, 3, 4],
    }
    rows["image"][2] = {"bytes": b"broken", "path": "2.png"}
    features = Features(
        image=Image(), prompt=Value("string"), style=Value("string"), repeats=Value("int64")
    )
    return Dataset.from_dict(rows, features=features)


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def check_table(pairs, noise):
    assert names(pairs) == ["row 0 0.png", "row 1 1.png", "row 3 3.png"]
    assert pairs.captions == ["zero", "", "three"]
    assert pairs.repeats == [1, 2, 4]
    assert [row["name"] for row in pairs.quarantine] == ["row 2 2.png"]
    assert pairs.without_caption == ["row 1 1.png"]
    last = torch.from_numpy(np.array(noise(seed=3))).permute(2, 0, 1)
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).image(2), last)


@pytest.mark.usefixtures("_own_cache")
def test_parquet(table, tmp_path, noise):
    path = tmp_path / "pairs.parquet"
    table.to_parquet(path)
    check_table(open_pairs(f"parquet:{path}", max_bad_fraction=0.3), noise)
    styles = open_pairs(f"parquet:{path}", caption_column="style", max_bad_fraction=0.3)
    assert styles.captions == ["a", "b", "d"]
    with pytest.raises(
        InputError, match=r"'styl' .*mean 'style'\? available columns: prompt, repeats, st"
    ):
        open_pairs(f"parquet:{path}", caption_column="styl")
    assert len(open_pairs(f"parquet:{path}", limit=2)) == 2


def test_hub(table, monkeypatch, noise):
    import datasets

    def load_dataset(name, split):
        assert (name, split) == ("someone/pairs", "validation")
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check_table(open_pairs("hf:someone/pairs:validation", max_bad_fraction=0.3), noise)


# The dataset


@pytest.fixture
def captionless(zoo) -> Path:
    """20 images, 6 of them bad, and notes.txt."""
    (zoo / "sub/metadata.jsonl").unlink()
    return zoo


def test_images_are_the_stored_ones(folder, encode, noise):
    oriented = noise((12, 10), seed=7)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    (folder / "e.png").write_bytes(encode(oriented, exif=exif))
    (folder / "f.png").write_bytes(encode(Image.new("RGBA", (3, 2), (0, 0, 0, 0))))
    pairs = open_pairs(str(folder))
    assert names(pairs) == ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "sub/e.png"]
    assert pairs.sizes == [*[(10, 12)] * 4, (12, 10), (2, 3), (10, 12)]
    for index, name in enumerate(names(pairs)):
        assert pairs.image(index).shape == (3, *pairs.sizes[index])
        assert pairs.image(index).dtype == torch.uint8
        assert pairs.checksum(index) == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    upright = np.rot90(np.array(oriented), -1).copy()
    assert torch.equal(pairs.image(4), torch.from_numpy(upright).permute(2, 0, 1))
    assert (pairs.image(5) == 255).all()


def test_zoo_has_exactly_its_six_bad_files(captionless):
    pairs = open_pairs(str(captionless), max_bad_fraction=0.3)
    assert [row["name"] for row in pairs.quarantine] == [
        *("bomb.png", "deep.png", "empty.png", "phone.heic", "text.png", "truncated.jpg")
    ]
    assert pairs.summary() == (
        "14 pairs, 6 quarantined, 14 images without a caption, 1 caption without an image"
    )
    assert pairs.without_image == ["notes.txt"]
    with pytest.raises(InputError, match=r"6 of 20 pairs .*at most 29.9%.*bomb\.png"):
        open_pairs(str(captionless), max_bad_fraction=0.299)


def test_limit_takes_the_first(captionless):
    pairs = open_pairs(str(captionless), limit=9, max_bad_fraction=1)
    assert len(pairs) + len(pairs.quarantine) == 9
    assert pairs.name(0) == "cmyk.jpg"


def test_user_files_are_not_touched(captionless, tree_hash):
    before = tree_hash(captionless)
    open_pairs(str(captionless), max_bad_fraction=1).image(0)
    assert tree_hash(captionless) == before


def test_fingerprint_depends_on_the_data_and_not_on_the_path(folder, tmp_path):
    def fingerprint(place):
        return open_pairs(str(place)).fingerprint()

    (folder / "a.txt").write_text("a")
    before = fingerprint(folder)
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == before
    fingerprints = {before}
    (moved / "a.txt").write_text("b")
    fingerprints.add(fingerprint(moved))
    (moved / "b.png").write_bytes((moved / "c.png").read_bytes())
    fingerprints.add(fingerprint(moved))
    (moved / "b.png").rename(moved / "bb.png")
    fingerprints.add(fingerprint(moved))
    write_jsonl(moved / "metadata.jsonl", {"file_name": "c.png", "text": "", "repeats": 2})
    fingerprints.add(fingerprint(moved))
    assert len(fingerprints) == 5


def test_selected_pairs_are_a_dataset_of_their_own(folder):
    (folder / "d.txt").write_text("d")
    pairs = open_pairs(str(folder))
    before = pairs.fingerprint()
    selected = pairs.select([3, 1])
    assert captions(selected) == {"d.png": "d", "b.png": ""}
    assert selected.without_caption == ["b.png"]
    assert torch.equal(selected.image(0), pairs.image(3))
    assert selected.checksum(1) == pairs.checksum(1)
    assert selected.fingerprint() != before == pairs.fingerprint()
    assert len(pairs) == 5


def test_an_image_that_changes_after_the_scan_is_noticed(folder):
    pairs = open_pairs(str(folder))
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(InputError, match=r"a\.png was readable .* but now: its bytes have changed"):
        pairs.image(0)
    (folder / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png was readable .* now: cannot be read"):
        pairs.image(0)


# The scan cache


def decoded(monkeypatch) -> list[str]:
    """A list that collects the names of the images that are decoded from now on."""
    names_decoded = []
    decode = data_pairs.decode_image

    def count(data, name, channels):
        names_decoded.append(name)
        return decode(data, name, channels)

    monkeypatch.setattr(data_pairs, "decode_image", count)
    return names_decoded


def test_cached_images_are_not_decoded_again(folder, tmp_path, encode, monkeypatch):
    (folder / "broken.png").write_bytes(b"not an image")
    open_folder = partial(open_pairs, str(folder), max_bad_fraction=0.5)
    plain = open_folder()
    scan_cache = tmp_path / "cache" / "images.json"
    first = open_folder(scan_cache=scan_cache)
    names_decoded = decoded(monkeypatch)
    second = open_folder(scan_cache=scan_cache)
    assert names_decoded == [
        "broken.png"
    ]  # bad images are tried again: the decoder may have improved
    for pairs in (first, second):
        assert pairs.fingerprint() == plain.fingerprint()
        assert pairs.sizes == plain.sizes
        assert pairs.quarantine == plain.quarantine
    (folder / "a.png").write_bytes(encode(Image.new("RGB", (7, 9))))
    assert open_folder(scan_cache=scan_cache).sizes[0] == (9, 7)
    assert sorted(names_decoded[1:]) == ["a.png", "broken.png"]  # by several threads
    assert len(json.loads(scan_cache.read_text())["sizes"]) == 6  # old sizes are kept


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"decoder": "another", "sizes": {}}', '{"decoder": "DECODER", "sizes": [1]}'],
)
def test_an_unusable_scan_cache_is_ignored(folder, tmp_path, monkeypatch, text):
    scan_cache = tmp_path / "images.json"
    scan_cache.write_text(text.replace("DECODER", DECODER))
    names_decoded = decoded(monkeypatch)
    assert len(open_pairs(str(folder), scan_cache=scan_cache)) == len(names_decoded) == 5
    open_pairs(str(folder), scan_cache=scan_cache)
    assert len(names_decoded) == 5


def test_the_dataset_holds_no_image(folder, encode):
    (folder / "large.png").write_bytes(encode(Image.new("RGB", (2000, 2000))))
    # 12 MB decoded, 12 kB stored.
    assert len(pickle.dumps(open_pairs(str(folder)))) < 3000


@pytest.mark.parametrize(
    "spec, message",
    [
        ("parquet:", "not have the form parquet:FILE"),
        ("wds:", "not have the form wds:"),
        ("no/such/folder", "no such folder or file"),
        ("hf:a/b/c", "is not the name of a dataset"),
    ],
)
def test_wrong_specifications(spec, message):
    with pytest.raises(InputError, match=message):
        open_pairs(spec)
