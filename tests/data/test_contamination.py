import json
import pickle
import re
import warnings
from collections import Counter
from math import sqrt

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as v2

from latent_robust.data import ContaminatedImages, open_images, parse_contamination
from latent_robust.data.contamination.kinds import CORRUPTIONS
from latent_robust.data.contamination.kinds.image import to_bytes
from latent_robust.errors import InputError
from latent_robust.subset import evenly_spaced

EVERYTHING = [
    "gaussian:fraction=0.9,sigma=0.0-0.3",
    "salt-and-pepper:fraction=0.3,amount=0.1",
    "blocks:fraction=0.3,size=0.3,count=2",
    "blur:fraction=0.3,sigma=0.7",
    "jpeg:fraction=0.3,quality=30",
    "outliers:fraction=0.05,source=digits",
]


def as_it_is(batch):
    return batch


@pytest.fixture(scope="module")
def images():
    return open_images("digits", size=8, channels=1)


@pytest.fixture(scope="module")
def few():
    return open_images("digits", size=8, channels=3, limit=40)


def contaminate(images, *specs, seed=0):
    return ContaminatedImages(images, parse_contamination(specs), seed)


def test_independent_of_workers_order_and_access(few, monkeypatch):
    samples = contaminate(few, *EVERYTHING)
    expected = torch.stack([samples[i]["sample"] for i in range(len(samples))])
    assert torch.equal(contaminate(few, *EVERYTHING).sample_tensor(), expected)
    backwards = contaminate(few, *EVERYTHING)
    for i in reversed(range(40)):
        assert torch.equal(backwards[i]["sample"], expected[i])
    for large in (False, True):
        if large:
            monkeypatch.setattr("latent_robust.data.contamination.image_dataset.SMALL", 0)
        for workers in (0, 2):
            fresh = contaminate(few, *EVERYTHING)
            loader = DataLoader(fresh, 7, shuffle=True, num_workers=workers, collate_fn=as_it_is)
            batches = list(loader)
            index = torch.cat([batch["index"] for batch in batches])
            assert sorted(index.tolist()) == list(range(40))
            assert torch.equal(torch.cat([b["sample"] for b in batches]), expected[index])
    assert torch.equal(pickle.loads(pickle.dumps(fresh))[3]["sample"], expected[3])


def test_global_random_state_is_not_used(few):
    before = torch.get_rng_state()
    contaminate(few, *EVERYTHING).sample_tensor()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_contamination(few):
    first, second = (contaminate(few, *EVERYTHING, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.sample_tensor(), second.sample_tensor())
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == contaminate(few, *EVERYTHING).fingerprint()
    assert first.fingerprint() != contaminate(few, *EVERYTHING[:-1]).fingerprint()


def test_limit_does_not_change_the_first_images(images):
    some = open_images("digits", size=8, channels=1, limit=20)
    spec = EVERYTHING[:-1]
    assert torch.equal(
        contaminate(some, *spec).sample_tensor(), contaminate(images, *spec).sample_tensor()[:20]
    )


@pytest.mark.parametrize("kept", [False, True])
def test_a_limit_takes_evenly_spaced_images(few, kept):
    samples = contaminate(few, *EVERYTHING)
    dirty, clean = contaminate(few, *EVERYTHING).sample_tensor(), samples.clean_tensor()
    if kept:
        samples.materialize()
    for limit, expected in (
        (1, [0]),
        (2, [0, 39]),
        (4, [0, 13, 26, 39]),
        (14, range(0, 40, 3)),
        (40, range(40)),
        (41, range(40)),
        (None, range(40)),
    ):
        assert torch.equal(samples.sample_tensor(limit), dirty[list(expected)])
        assert torch.equal(samples.clean_tensor(limit), clean[list(expected)])


def test_no_image_is_taken_twice(few):
    for limit in range(1, 41):
        indices = evenly_spaced(len(few), limit)
        assert len(indices) == len(set(indices)) == limit


def test_a_small_set_is_contaminated_once(few, monkeypatch):
    samples = contaminate(few, *EVERYTHING)
    samples.materialize()
    expected = samples.sample_tensor()
    monkeypatch.setattr(samples, "_contaminate", None)  # any call fails, in a worker too
    samples.materialize()
    assert samples.sample_tensor() is expected
    assert torch.equal(samples[3]["sample"], expected[3])
    for workers in (0, 2):
        loader = DataLoader(samples, 40, num_workers=workers, collate_fn=as_it_is)
        assert torch.equal(next(iter(loader))["sample"], expected)


def test_a_large_set_is_not_kept(few, monkeypatch):
    monkeypatch.setattr("latent_robust.data.contamination.image_dataset.SMALL", 0)
    samples = contaminate(few, *EVERYTHING)
    samples.materialize()
    samples.sample_tensor()
    assert samples._samples is None


def test_untouched_images_are_the_images(few):
    samples = contaminate(few, "gaussian:fraction=0,sigma=0.2")
    assert torch.equal(samples.sample_tensor(), samples.clean_tensor())
    assert torch.equal(samples.clean(3), 2 * few.image(3) - 1)
    assert all(row["corruptions"] == [] for row in samples.manifest())
    assert not samples.levels().any()
    everything = contaminate(few, "gaussian:fraction=1,sigma=0.2")
    assert (everything.levels() == torch.tensor(0.4)).all()


def test_fractions_are_binomial_and_independent(images):
    samples = contaminate(images, "gaussian:fraction=0.9,sigma=0.2", "blocks:fraction=0.5,size=0.2")
    kinds = [tuple(c["kind"] for c in row["corruptions"]) for row in samples.manifest()]
    n = len(images)
    for p, count in (
        (0.9, sum("gaussian" in row for row in kinds)),
        (0.5, sum("blocks" in row for row in kinds)),
        (0.45, sum(len(row) == 2 for row in kinds)),
    ):
        # 5 standard deviations of Binomial(n, p): correct code fails for one seed in 2 million.
        assert abs(count - n * p) < 5 * sqrt(n * p * (1 - p))


def test_gaussian_noise_has_the_right_mean_and_std(images):
    samples = contaminate(images, "gaussian:fraction=1,sigma=0.2")
    noise = samples.sample_tensor() - samples.clean_tensor()
    n = noise.numel()
    # 5 standard errors: sigma / sqrt(2 n) for the std, sigma / sqrt(n) for the mean.
    assert abs(noise.std() - 0.4) < 5 * 0.4 / sqrt(2 * n)
    assert abs(noise.mean()) < 5 * 0.4 / sqrt(n)
    # Neighbouring images get independent noise: correlations are N(0, 1 / pixels).
    rows = noise.flatten(1) / 0.4
    correlation = (rows[1:] * rows[:-1]).mean()
    assert abs(correlation) < 5 / sqrt(n)


def test_levels_are_the_noise_std_of_each_image():
    big = open_images("digits", size=128, channels=1, limit=20)
    samples = contaminate(big, "gaussian:fraction=0.8,sigma=0.05-0.3")
    noise = samples.sample_tensor() - samples.clean_tensor()
    levels = samples.levels()
    assert levels.shape == (20,)
    assert 0 < (levels == 0).sum() < 20
    assert levels[levels > 0].min() >= 0.1
    assert levels.max() <= 0.6
    # 5 standard errors of a std over 128^2 pixels.
    assert ((noise.flatten(1).std(1) - levels).abs() <= 5 * levels / sqrt(2 * 128**2)).all()


def test_levels_add_in_squares_and_vanish_with_a_replaced_image(few):
    twice = ["gaussian:fraction=1,sigma=0.3", "gaussian:fraction=1,sigma=0.4"]
    assert torch.allclose(contaminate(few, *twice).levels(), torch.tensor(1.0))
    replaced = contaminate(few, *twice, "outliers:fraction=1,source=digits")
    assert not replaced.levels().any()


def test_clip_keeps_the_range(few):
    samples = contaminate(few, "gaussian:fraction=1,sigma=0.5,clip=true").sample_tensor()
    assert samples.min() == -1
    assert samples.max() == 1


def test_salt_and_pepper_hits_whole_pixels():
    big = open_images("digits", size=128, channels=3, limit=1)
    samples = contaminate(big, "salt-and-pepper:fraction=1,amount=0.2")
    (record,) = next(samples.manifest())["corruptions"]
    changed = samples[0]["sample"] != samples.clean(0)
    # Pixels that were black before may have been hit too.
    assert 0 < changed.any(0).sum() <= record["pixels"]
    assert set(samples[0]["sample"][changed].tolist()) == {-1.0, 1.0}
    n = 128**2
    # 5 standard deviations of Binomial(n, 0.2).
    assert abs(record["pixels"] - 0.2 * n) < 5 * sqrt(n * 0.2 * 0.8)


def test_blocks_are_where_the_record_says(few):
    samples = contaminate(few, "blocks:fraction=1,size=0.25,count=2,fill=gray")
    for i, row in enumerate(samples.manifest()):
        (record,) = row["corruptions"]
        expected = samples.clean(i).clone()
        assert len(record["boxes"]) == 2
        for top, left, height, width in record["boxes"]:
            assert (height, width) == (2, 2)
            expected[:, top : top + height, left : left + width] = 0  # gray in [-1, 1]
        assert torch.equal(samples[i]["sample"], expected)


def test_block_of_full_size_covers_the_image(few):
    samples = contaminate(few, "blocks:fraction=1,size=1,fill=black")
    assert (samples.sample_tensor() == -1).all()


@pytest.mark.parametrize("sigma", [0.7, 50])
def test_blur_is_what_the_record_says(few, sigma):
    samples = contaminate(few, f"blur:fraction=1,sigma={sigma}")
    (record,) = next(samples.manifest())["corruptions"]
    kernel = [record["kernel"]] * 2
    expected = v2.gaussian_blur(few.image(0), kernel, [record["sigma"]] * 2)
    assert torch.equal(samples[0]["sample"], 2 * expected - 1)


def test_blur_leaves_a_flat_image_alone():
    (blur,) = parse_contamination(["blur:fraction=1,sigma=2"])
    flat = torch.full((3, 9, 9), 0.3)
    blurred, _ = blur.apply(flat, torch.Generator())
    # The kernel sums to 1 up to rounding.
    assert torch.allclose(blurred, flat, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_the_record_says(channels):
    images = open_images("digits", size=8, channels=channels, limit=3)
    samples = contaminate(images, "jpeg:fraction=1,quality=20")
    (record,) = next(samples.manifest())["corruptions"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torchvision's JPEG
        decoded = v2.jpeg(to_bytes(images.image(0)), record["quality"])
    assert decoded.shape == (channels, 8, 8)
    assert torch.equal(to_bytes((samples[0]["sample"] + 1) / 2), decoded)


def test_jpeg_does_not_warn(few):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contaminate(few, "jpeg:fraction=1,quality=20").sample_tensor()


def test_outliers_are_images_of_the_other_source(few, zoo):
    spec = {"kind": "outliers", "fraction": 0.5, "source": f"{zoo}/sub"}
    samples = contaminate(few, spec)
    others = open_images(f"{zoo}/sub", size=8, channels=3)
    for i, row in enumerate(samples.manifest()):
        image = few.image(i)
        for record in row["corruptions"]:
            image = others.image(record["outlier"])
            assert others.name(record["outlier"]) == record["name"]
        assert torch.equal(samples[i]["sample"], 2 * image - 1)
    with pytest.raises(InputError, match="no such folder"):
        contaminate(few, {**spec, "source": f"{zoo}/none"})


@pytest.mark.parametrize("specs", [*([spec] for spec in EVERYTHING), EVERYTHING])
def test_manifest_is_what_was_done_and_decodes_nothing(few, monkeypatch, specs):
    specs = [re.sub("fraction=[0-9.]+", "fraction=0.8", spec) for spec in specs]
    samples = contaminate(few, *specs)
    done = [samples._contaminate(few.image(index), index)[1] for index in range(40)]
    assert {record["kind"] for records in done for record in records} == {
        spec.partition(":")[0] for spec in specs
    }
    monkeypatch.setattr(few, "image", None)
    assert [row["corruptions"] for row in samples.manifest()] == done


def test_manifest_round_trip(few, tmp_path):
    samples = contaminate(few, *EVERYTHING, seed=7)
    samples.write_manifest(tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert rows == list(samples.manifest())
    assert [row["index"] for row in rows] == list(range(40))
    assert [row["name"] for row in rows] == [few.name(i) for i in range(40)]
    assert {row["seed"] for row in rows} == {7}
    kinds = Counter(c["kind"] for row in rows for c in row["corruptions"])
    assert set(kinds) <= set(CORRUPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_unwritable_manifest_leaves_the_old_one(few, tmp_path, monkeypatch):
    path = tmp_path / "manifest.jsonl"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        contaminate(few).write_manifest(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_text_and_dict_are_equivalent():
    assert parse_contamination(
        ["gaussian:fraction=0.9,sigma=0.0-0.3", "gaussian:fraction=1,sigma=1e-3,clip=true"]
    ) == parse_contamination(
        [
            {"kind": "gaussian", "fraction": 0.9, "sigma": [0.0, 0.3]},
            {"kind": "gaussian", "fraction": 1, "sigma": 0.001, "clip": True},
        ]
    )
    (outliers,) = parse_contamination(["outliers:fraction=0.1,source=fashion-mnist:/a-b/c=d"])
    assert outliers.source == "fashion-mnist:/a-b/c=d"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("gausian:fraction=1,sigma=1", "did you mean 'gaussian'"),
        ("gaussian:fractoin=1,sigma=1", "did you mean 'fraction'"),
        ("gaussian:fraction=1", "needs `sigma`"),
        ("gaussian", "needs `fraction`, `sigma`|needs `sigma`, `fraction`"),
        ("gaussian:fraction=1.5,sigma=1", r"`fraction` must be a number in \[0, 1\], got 1.5"),
        ("gaussian:fraction=nan,sigma=1", "got nan"),
        ("gaussian:fraction=1,sigma=-0.1", "got -0.1"),
        ("gaussian:fraction=1,sigma=0.3-0.1", "`sigma` must be a number >= 0.3, got 0.1"),
        ("gaussian:fraction=1,sigma=high", "got 'high'"),
        ("gaussian:fraction=1,sigma", "NAME=VALUE"),
        ("gaussian:fraction=1,fraction=1,sigma=1", "twice"),
        ("gaussian:fraction=1,sigma=1,clip=1", "true or false"),
        ("salt-and-pepper:fraction=1,amount=2", "amount"),
        ("blocks:fraction=1,size=2", "size"),
        ("blocks:fraction=1,size=0.2,count=1.5", "whole number >= 1"),
        ("blocks:fraction=1,size=0.2,fill=red", "gray or black"),
        ("blur:fraction=1,sigma=0", "sigma"),
        ("jpeg:fraction=1,quality=0", r"whole number in \[1, 100\]"),
        ("outliers:fraction=1,source=3", "must name a dataset"),
        ("outliers:fraction=1,images=3", "no parameter 'images'"),
        ({"kind": "gaussian", "fraction": True, "sigma": 1}, "got True"),
        ({"kind": "gaussian", "fraction": 1, "sigma": [1, 2, 3]}, r"\[low, high\]"),
        ({"fraction": 1}, "needs a `kind`"),
        (None, "needs a `kind`"),
    ],
)
def test_wrong_contamination(spec, message):
    with pytest.raises(InputError, match=message):
        parse_contamination([spec])


def test_contamination_may_be_one_text():
    one, other = "gaussian:fraction=0.9,sigma=0.2", "blur:fraction=0.1,sigma=1"
    assert parse_contamination(f"{one} ; {other};") == parse_contamination([one, other])
    assert parse_contamination("none") == []
    with pytest.raises(InputError, match="must be a list"):
        parse_contamination({"kind": "gaussian"})
