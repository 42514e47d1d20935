import os
import pickle
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from latent_robust.data import open_images
from latent_robust.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_digits_are_exact():
    from sklearn.datasets import load_digits

    images = open_images("digits", size=8, channels=1)
    assert len(images) == 1797
    stack = torch.stack([images.image(i) for i in range(1797)])
    # Sixteenths are exact in binary.
    assert torch.equal((16 * stack[:, 0]).double(), torch.from_numpy(load_digits().images))
    assert torch.equal(images.labels, torch.from_numpy(load_digits().target))


def test_zoo_has_exactly_its_six_bad_files(zoo):
    images = open_images(str(zoo), size=8, channels=3, max_bad_fraction=0.3)
    assert len(images) == 14
    assert images.ignored == 2
    reasons = {row["name"]: row["reason"] for row in images.quarantine}
    assert list(reasons) == [
        "bomb.png",
        "deep.png",
        "empty.png",
        "phone.heic",
        "text.png",
        "truncated.jpg",
    ]
    assert [images.name(i) for i in range(3)] == ["cmyk.jpg", "dot.png", "rgba.png"]
    for i in range(14):
        image = images.image(i)
        assert image.shape == (3, 8, 8)
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
    dot = images.image(1)
    expected = torch.tensor([10, 20, 30]).view(3, 1, 1).expand(3, 8, 8)
    assert torch.equal((dot * 255).round().long(), expected)


def test_too_many_bad_images_stop(zoo):
    # 6 of 20 are 30 %: allowed by one limit, too many for the other.
    with pytest.raises(InputError, match=r"6 of 20 .*at most 29.9%.*bomb\.png.*deep\.png.*empty"):
        open_images(str(zoo), size=8, channels=3, max_bad_fraction=0.299)


def test_user_files_are_not_touched(zoo, tree_hash):
    before = tree_hash(zoo)
    open_images(str(zoo), size=8, channels=3, max_bad_fraction=1)
    assert tree_hash(zoo) == before


def test_a_folder_of_only_bad_images_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 1 .*at least one good"):
        open_images(str(tmp_path), size=8, channels=3, max_bad_fraction=1)


def test_empty_folder(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"no images in .*1 other file"):
        open_images(str(tmp_path), size=8, channels=3)


def test_broken_link_and_pipe_are_quarantined(zoo):
    (zoo / "link.png").symlink_to(zoo / "absent.png")
    os.mkfifo(zoo / "pipe.png")
    images = open_images(str(zoo), size=8, channels=3, max_bad_fraction=1)
    assert {"link.png", "pipe.png"} < {row["name"] for row in images.quarantine}
    assert len(images.quarantine) == 8


def test_a_run_directory_inside_the_data_is_ignored(zoo):
    before = open_images(str(zoo), size=8, channels=3, max_bad_fraction=1).fingerprint()
    (zoo / "runs/mine/samples").mkdir(parents=True)
    (zoo / "runs/mine/config.yaml").touch()
    (zoo / "runs/mine/manifest.jsonl").touch()
    Image.new("RGB", (8, 8)).save(zoo / "runs/mine/samples/final.png")
    after = open_images(str(zoo), size=8, channels=3, max_bad_fraction=1).fingerprint()
    assert after == before


def test_limit_takes_the_first(zoo):
    images = open_images(str(zoo), size=8, channels=3, limit=9, max_bad_fraction=1)
    assert len(images) + len(images.quarantine) == 9
    assert images.name(0) == "cmyk.jpg"


def test_a_large_dataset_is_read_lazily_and_has_the_same_images(zoo, monkeypatch):
    options = {"size": 8, "channels": 3, "max_bad_fraction": 1}
    small = open_images(str(zoo), **options)
    monkeypatch.setattr("latent_robust.data.images.SMALL", 0)
    large = open_images(str(zoo), **options)
    assert large.quarantine == small.quarantine
    assert large.fingerprint() == small.fingerprint()
    assert all(torch.equal(small.image(i), large.image(i)) for i in range(14))

    (zoo / "cmyk.jpg").write_bytes(b"")
    assert small.image(0).shape == (3, 8, 8)  # decoded once and kept in memory
    with pytest.raises(InputError, match=r"cmyk\.jpg was readable .* now: 0 bytes"):
        large.image(0)


def test_the_central_square_is_used(tmp_path, encode):
    # Black except for the central square.
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    (tmp_path / "wide.png").write_bytes(encode(Image.fromarray(wide)))
    (tmp_path / "strip.png").write_bytes(encode(Image.new("L", (100_000, 1), 255)))
    images = open_images(str(tmp_path), size=4, channels=3)
    assert all((images.image(i) == 1).all() for i in range(2))


def test_size_of_the_original_is_bit_equal(tmp_path, encode, noise):
    (tmp_path / "a.png").write_bytes(encode(noise((8, 8))))
    image = open_images(str(tmp_path), size=8, channels=3).image(0)
    expected = torch.from_numpy(np.array(noise((8, 8)))).permute(2, 0, 1)
    assert torch.equal((image * 255).round().to(torch.uint8), expected)


def test_fingerprint_depends_on_the_data_and_not_on_the_path(zoo, tmp_path):
    def fingerprint(folder, **options):
        options = {"size": 8, "channels": 3, "max_bad_fraction": 1} | options
        return open_images(str(folder), **options).fingerprint()

    before = fingerprint(zoo)
    assert fingerprint(zoo) == before
    assert fingerprint(zoo, size=4) != before
    assert fingerprint(zoo, channels=1) != before
    assert fingerprint(zoo, limit=12) != before
    moved = zoo.rename(tmp_path / "moved")
    assert fingerprint(moved) == before
    (moved / "sub/0.png").write_bytes((moved / "sub/1.png").read_bytes())
    assert fingerprint(moved) != before


def test_a_pickled_dataset_is_the_same(zoo):
    images = open_images(str(zoo), size=8, channels=3, max_bad_fraction=1)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.fingerprint() == images.fingerprint()
    assert torch.equal(copy.image(5), images.image(5))


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_is_exact(idx, zipped):
    rng = np.random.default_rng(0)
    raw, labels = rng.integers(0, 256, (5, 6, 6)), np.arange(5)
    folder = idx(raw, labels, zipped)
    images = open_images(f"fashion-mnist:{folder}", size=6, channels=3)
    stack = torch.stack([images.image(i) for i in range(5)])
    expected = torch.from_numpy(raw)[:, None].expand(5, 3, 6, 6)
    assert torch.equal((stack * 255).round().long(), expected)
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    assert open_images(f"fashion-mnist:{folder}", size=6, channels=1, limit=2).labels.numel() == 2


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-1], "announces 5x6x6 bytes but holds 179"),
        (lambda data: b"\x1f" + data[1:], "not an IDX file"),
        (lambda data: b"", "not an IDX file"),
    ],
)
def test_damaged_idx(idx, damage, message):
    folder = idx(np.zeros((5, 6, 6)), np.zeros(5))
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=message):
        open_images(f"fashion-mnist:{folder}", size=6, channels=1)


def test_truncated_gzip(idx):
    folder = idx(np.zeros((5, 6, 6)), np.zeros(5), zipped=True)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="download the file again"):
        open_images(f"fashion-mnist:{folder}", size=6, channels=1)


def _cells(encode, noise):
    cells = [{"bytes": encode(noise((8, 8), seed=i)), "path": f"{i}.png"} for i in range(4)]
    return [*cells, {"bytes": b"text", "path": "bad.png"}, None]


@pytest.mark.parametrize("column", ["image", "img", "photo"])
def test_parquet_column_by_name_or_by_feature(tmp_path, encode, noise, column):
    from datasets import Dataset, Features, Image, Value

    cells = _cells(encode, noise)
    features = {"bytes": Value("binary"), "path": Value("string")}
    if column == "photo":
        features = Image(decode=False)
    table = Dataset.from_dict(
        {column: cells, "label": [3, 1, 4, 1, 5, 9]},
        features=Features({column: features, "label": Value("int64")}),
    )
    table.to_parquet(tmp_path / "x.parquet")
    spec = f"parquet:{tmp_path / 'x.parquet'}"
    images = open_images(spec, size=8, channels=3, max_bad_fraction=0.5)
    assert len(images) == 4
    assert images.labels.tolist() == [3, 1, 4, 1]
    assert [row["name"] for row in images.quarantine] == ["row 4 bad.png", "row 5"]
    expected = torch.from_numpy(np.array(noise((8, 8), seed=2))).permute(2, 0, 1)
    assert torch.equal((images.image(2) * 255).round().to(torch.uint8), expected)


def test_parquet_of_plain_bytes_without_labels(tmp_path, encode, noise):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"img": [encode(noise())], "label": ["a word"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    images = open_images(f"parquet:{tmp_path / 'x.parquet'}", size=8, channels=3)
    assert len(images) == 1
    assert images.labels is None


def test_parquet_without_images(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"no image column .*text, n"):
        open_images(f"parquet:{tmp_path / 'x.parquet'}", size=8, channels=3)
    (tmp_path / "y.parquet").write_text("text")
    with pytest.raises(InputError, match="as parquet"):
        open_images(f"parquet:{tmp_path / 'y.parquet'}", size=8, channels=3)


def test_hub_name_and_split(monkeypatch, encode, noise):
    import datasets

    def load_dataset(name, split):
        assert (name, split) == ("somebody/images", "test")
        features = datasets.Features({"photo": datasets.Image()})
        cells = _cells(encode, noise)[:4]
        return datasets.Dataset.from_dict({"photo": cells}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(open_images("hf:somebody/images:test", size=8, channels=3)) == 4


def test_offline_hub_is_refused_without_a_connection(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    tried = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: tried.append(a) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda *a: tried.append(a))
    with pytest.raises(InputError, match=r"hf:nobody/nothing:train.*local cache"):
        open_images("hf:nobody/nothing", size=8, channels=3, offline=True)
    assert not tried
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    "spec, message",
    [
        ("{tmp}/imagse", r"no such folder or file.*did you mean 'images'"),
        ("parquet:{tmp}/imagse", "did you mean 'images'"),
        ("fashon-mnist:{tmp}", r"did you mean 'fashion-mnist'.*parquet:FILE"),
        ("{tmp}/a.parquet", r"is a file, not a folder.*parquet:FILE"),
        ("parquet:{tmp}/images", "is a folder, not a file"),
        ("digits:8", "not have the form digits"),
        ("hf:", r"not have the form hf:NAME\[:SPLIT\]"),
        ("hf:{tmp}/images", "only the path for a folder"),
        ("hf:./images", "only the path for a folder"),
        ("fashion-mnist:{tmp}", "no train-images-idx3-ubyte or"),
        ("", "is a file, not a folder|no images in|no such folder"),
    ],
)
def test_wrong_specification(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "a.parquet").touch()
    with pytest.raises(InputError, match=message):
        open_images(spec.format(tmp=tmp_path), size=8, channels=3)


@pytest.mark.parametrize(
    "option", [{"size": 0}, {"channels": 2}, {"limit": 0}, {"max_bad_fraction": 2}]
)
def test_wrong_option(option):
    with pytest.raises(InputError, match="got"):
        open_images("digits", **({"size": 8, "channels": 1} | option))
