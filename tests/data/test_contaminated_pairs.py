import json
import pickle
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as v2

from latent_robust.commands.main import main
from latent_robust.data import (
    ContaminatedImages,
    ContaminatedPairs,
    contaminate_pairs,
    fit_bucket,
    make_buckets,
    open_images,
    open_pairs,
    parse_contamination,
)
from latent_robust.data.contamination.kinds import CORRUPTIONS
from latent_robust.data.contamination.kinds.caption import derangement
from latent_robust.data.contamination.kinds.image import to_bytes
from latent_robust.data.contamination.kinds.poison import imitate
from latent_robust.errors import InputError

COUNT = 24
SHAPES = [(20, 20), (30, 16), (16, 30), (12, 13)]  # width, height
BUCKETS = make_buckets(16, multiple=4)  # 20 x 12, 16 x 16, 12 x 20
IMAGES = [
    "gaussian:fraction=0.9,sigma=0.0-0.3",
    "salt-and-pepper:fraction=0.4,amount=0.1",
    "blocks:fraction=0.4,size=0.3,count=2",
    "blur:fraction=0.4,sigma=0.7",
    "jpeg:fraction=0.4,quality=30",
    "watermark:fraction=0.4,text=sample",
    "watermark:fraction=0.4,text=sample,position=tiled,opacity=0.3",
]
PAIRS = [
    "caption-shuffle:fraction=0.5",
    "caption-truncate:fraction=0.5,keep=2",
    "near-duplicate:fraction=0.4,sources=3",
    "caption-drop:fraction=0.2",
    "encoder-poison:fraction=0.4,radius=0.05,steps=3",
]
ATTACK = PAIRS[-1]


def write_pairs(folder, change=()):
    """Pairs with different images and captions. change: indices of pairs that get another image."""
    folder.mkdir()
    rows = []
    for index in range(COUNT):
        width, height = SHAPES[index % len(SHAPES)]
        random = np.random.default_rng((index, index in change))
        # Smooth images (4 x 4 pixels, enlarged), so that a shifted crop changes them little.
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
        caption = f"number {index} of several things"
        rows.append({"file_name": f"{index:02}.png", "text": caption, "repeats": 1 + index % 2})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_pairs(str(folder))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """20 gray images and a broken one."""
    folder = tmp_path_factory.mktemp("strangers")
    for index in range(20):
        Image.new("RGB", (30, 9 + index), (index,) * 3).save(folder / f"{index:02}.png")
    (folder / "broken.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def everything(strangers):
    return [*IMAGES, f"outliers:fraction=0.2,source={strangers}", *PAIRS]


@pytest.fixture(scope="module")
def encode():
    """A small convolutional encoder whose weights are frozen, as a VAE's are."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.SiLU(), nn.Conv2d(8, 4, 4, 2, 1)).eval()


def contaminate(pairs, *specs, seed=0, encode=None):
    return ContaminatedPairs(pairs, parse_contamination(specs), seed, BUCKETS, encode)


def records(samples):
    return [row["corruptions"] for row in samples.manifest()]


def all_samples(samples):
    return [samples.sample(index) for index in range(len(samples))]


def test_without_corruption_they_are_the_pairs(pairs):
    samples = contaminate(pairs)
    assert len(samples) == COUNT
    for i in range(COUNT):
        fitted = v2.to_dtype(
            fit_bucket(pairs.image(i), samples.bucket(i)), torch.float32, scale=True
        )
        assert torch.equal(samples.sample(i), 2 * fitted - 1)
        assert torch.equal(samples.clean(i), samples.sample(i))
        assert samples.caption(i) == pairs.captions[i]
    assert records(samples) == [[]] * COUNT
    assert not samples.levels().any()


def test_independent_of_order_and_process(pairs, encode, everything):
    expected = all_samples(contaminate(pairs, *everything, encode=encode))
    captions = [contaminate(pairs, *PAIRS[:-1]).caption(i) for i in range(COUNT)]
    fresh = pickle.loads(pickle.dumps(contaminate(pairs, *everything, encode=encode)))
    before = torch.get_rng_state()
    for _ in range(2):  # the second time from the cache
        for i in reversed(range(COUNT)):
            assert torch.equal(fresh.sample(i), expected[i])
            assert fresh.sample(i).shape == (3, *fresh.bucket(i))
    assert torch.equal(torch.get_rng_state(), before)
    assert [contaminate(pairs, *PAIRS[:-1]).caption(i) for i in range(COUNT)] == captions


def test_changing_a_returned_sample_does_not_change_the_cached_one(pairs, encode):
    samples = contaminate(pairs, "encoder-poison:fraction=1,radius=0.1,steps=1", encode=encode)
    first = samples.sample(0)
    expected = first.clone()
    first.zero_()
    samples.sample(0).zero_()
    assert torch.equal(samples.sample(0), expected)


def test_images_are_corrupted_as_in_an_image_dataset(pairs, strangers):
    """Bit for bit: the same seed gives the same corruptions for images and for pairs."""
    specs = parse_contamination(IMAGES)
    others = open_images(str(strangers), size=16, channels=3)
    images = ContaminatedImages(others, specs, 5)
    samples = ContaminatedPairs(pairs, specs, 5, [(16, 16)])
    for i in range(len(others)):
        assert samples.records(i) == images.records(i)
        assert samples.levels()[i] == images.levels()[i]
        dirty, _ = samples._contaminate(others.image(i), i)
        assert torch.equal(2 * dirty - 1, images[i]["sample"])


def test_manifest_is_what_was_done_and_decodes_nothing(
    pairs, encode, everything, monkeypatch, tmp_path
):
    samples = contaminate(pairs, *everything, seed=7, encode=encode)
    done = [samples._contaminate((samples.clean(i) + 1) / 2, i)[1] for i in range(COUNT)]
    monkeypatch.setattr(pairs, "image", None)
    samples = contaminate(pairs, *everything, seed=7, encode=encode)
    without_captions = [
        [{key: value for key, value in record.items() if key != "caption"} for record in row]
        for row in records(samples)
    ]
    assert without_captions == done
    samples.write_manifest(tmp_path / "manifest.jsonl")
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(samples.manifest())
    assert {record["kind"] for row in done for record in row} == set(CORRUPTIONS)


def test_manifest_restores_the_original_captions(pairs):
    samples = contaminate(pairs, *PAIRS[:-1])
    for i, row in enumerate(records(samples)):
        before = [record["caption"] for record in row if "caption" in record]
        assert [*before, samples.caption(i)][0] == pairs.captions[i]


def test_outliers_fit_every_bucket(pairs, strangers):
    samples = contaminate(pairs, f"outliers:fraction=1,source={strangers}")
    others = open_images(str(strangers), size=20, channels=3)
    for i, (record,) in enumerate(records(samples)):
        outlier = fit_bucket(others.image(record["outlier"]), samples.bucket(i))
        assert torch.equal(samples.sample(i), 2 * outlier - 1)
    assert {samples.bucket(i) for i in range(COUNT)} == set(BUCKETS)


def test_buckets_hold_each_index_as_often_as_it_repeats(pairs):
    samples = contaminate(pairs)
    buckets = samples.buckets()
    counts = Counter(index for bucket in buckets for index in bucket)
    assert counts == dict(enumerate(pairs.repeats))
    for bucket in buckets:
        assert len({samples.bucket(index) for index in bucket}) == 1
    assert len(buckets) == len({samples.bucket(i) for i in range(COUNT)})


@pytest.mark.parametrize("count", [2, 3, 4, 50])
def test_derangements_have_no_fixed_point(count):
    for seed in range(30):
        order = derangement(count, torch.Generator().manual_seed(seed))
        assert sorted(order) == list(range(count))
        assert all(order[i] != i for i in range(count))


def test_shuffled_captions_are_those_of_other_hit_pairs(pairs):
    samples = contaminate(pairs, "caption-shuffle:fraction=0.6")
    hit = [i for i, row in enumerate(records(samples)) if row]
    assert 2 <= len(hit) < COUNT
    assert sorted(samples.caption(i) for i in hit) == sorted(pairs.captions[i] for i in hit)
    for i, row in enumerate(records(samples)):
        assert (samples.caption(i) != pairs.captions[i]) == bool(row)
        for record in row:
            assert samples.caption(i) == pairs.captions[record["from"]]
            assert record["caption"] == pairs.captions[i]
        assert torch.equal(samples.sample(i), samples.clean(i))


def test_one_caption_cannot_be_shuffled(pairs):
    for fraction in (0, 0.02, 0.05, 0.08):
        for seed in range(10):
            samples = contaminate(pairs, f"caption-shuffle:fraction={fraction}", seed=seed)
            assert sum(map(bool, records(samples))) != 1


def test_dropped_and_truncated_captions(pairs):
    dropped = contaminate(pairs, "caption-drop:fraction=1")
    assert {dropped.caption(i) for i in range(COUNT)} == {""}
    for keep, expected in (
        (1, "number"),
        (2, "number 3"),
        (0.5, "number 3 of"),  # 2.5 of 5 words, rounded up
        (0.01, "number"),
        (5, "number 3 of several things"),
        (9, "number 3 of several things"),
    ):
        samples = contaminate(pairs, f"caption-truncate:fraction=1,keep={keep}")
        assert samples.caption(3) == expected
    assert records(contaminate(pairs, "caption-truncate:fraction=1,keep=1"))[3] == [
        {"kind": "caption-truncate", "caption": "number 3 of several things"}
    ]


def test_caption_corruptions_follow_one_another(pairs):
    samples = contaminate(pairs, "caption-shuffle:fraction=1", "caption-truncate:fraction=1,keep=2")
    for i, (shuffle, truncate) in enumerate(records(samples)):
        assert truncate["caption"] == pairs.captions[shuffle["from"]]
        assert samples.caption(i) == f"number {shuffle['from']}"
    # Captions that were dropped before are shuffled like the others.
    both = contaminate(pairs, "caption-drop:fraction=0.5", "caption-shuffle:fraction=1")
    dropped = {i for i, row in enumerate(records(both)) if row[0]["kind"] == "caption-drop"}
    assert {i for i, row in enumerate(records(both)) if row[-1]["from"] in dropped} == {
        i for i in range(COUNT) if both.caption(i) == ""
    }


@pytest.mark.parametrize("position", ["random", "tiled"])
@pytest.mark.parametrize("side", [24, 64, 200])
def test_watermark_is_seen_on_any_image(position, side):
    (mark,) = parse_contamination(
        [f"watermark:fraction=1,text=sample,opacity=0.25,position={position}"]
    )
    black = torch.zeros(3, side, side + 16)
    dirty, record = mark.apply(black, torch.Generator().manual_seed(3))
    assert 0 < dirty.max() <= 0.25
    if record["font_size"] >= 12:  # no stroke of smaller letters fills a pixel
        assert dirty.max() == 0.25
    assert torch.equal(dirty[0], dirty[2])
    share = (dirty[0] > 0).float().mean()
    assert 0.01 < share < (0.2 if position == "random" else 0.5)
    white, gray = (mark.change(black + value, record, torch.Generator()) for value in (1, 0.5))
    assert 0.75 <= white.min() < 0.95
    # The image below shows in proportion to 1 - opacity.
    assert torch.allclose(gray, (dirty + white) / 2)
    rows, columns = (dirty[0] > 0).any(1), (dirty[0] > 0).any(0)
    if position == "tiled":
        quarters = dirty[0].unfold(0, side // 2, side // 2).unfold(1, side // 2, side // 2)
        assert (quarters.amax((-1, -2)) > 0).all()
    else:
        assert rows.sum() <= side * 0.25 + 1
        assert abs(columns.sum() / (side + 16) - 0.6) < 0.2


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (16, 16)])
@pytest.mark.parametrize("position", ["random", "tiled"])
def test_watermark_fits_any_image(size, position):
    (mark,) = parse_contamination(
        [f"watermark:fraction=1,text='a rather long text',position={position}"]
    )
    for seed in range(5):
        dirty, _ = mark.apply(torch.zeros(3, *size), torch.Generator().manual_seed(seed))
        assert dirty.shape == (3, *size)


def test_a_watermark_is_no_taller_than_a_quarter_of_a_banner():
    (mark,) = parse_contamination(["watermark:fraction=1,text=ab"])
    dirty, _ = mark.apply(torch.zeros(3, 48, 600), torch.Generator().manual_seed(0))
    assert 0 < (dirty[0] > 0).any(1).sum() <= 48 / 4 + 1  # the shadow


def test_near_duplicates_are_near_their_originals(pairs):
    samples = contaminate(pairs, "near-duplicate:fraction=0.9,sources=2")
    originals = {record["original"] for row in records(samples) for record in row}
    assert len(originals) == 2
    copies = [i for i, row in enumerate(records(samples)) if row]
    assert not originals & set(copies)
    for i in copies:
        (record,) = records(samples)[i]
        assert samples.caption(i) == pairs.captions[record["original"]]
        assert record["caption"] == pairs.captions[i]
        fitted = fit_bucket(pairs.image(record["original"]), samples.bucket(i))
        original = 2 * v2.to_dtype(fitted, torch.float32, scale=True) - 1
        if record["mirrored"]:
            original = v2.horizontal_flip(original)
        near = (samples.sample(i) - original).square().mean()
        far = (samples.clean(i) - original).square().mean()
        assert 0 < near < far / 3


def test_replacing_an_image_removes_its_noise(pairs):
    noise = "gaussian:fraction=1,sigma=0.2"
    samples = contaminate(pairs, noise, PAIRS[2])
    copies = torch.tensor([len(row) == 2 for row in records(samples)])
    assert 0 < copies.sum() < COUNT
    assert torch.equal(samples.levels(), torch.where(copies, 0.0, 0.4))
    assert (contaminate(pairs, PAIRS[2], noise).levels() == torch.tensor(0.4)).all()


def distance(encode, first, second):
    with torch.no_grad():
        return (encode(first[None]) - encode(second[None])).square().sum()


def test_poison_is_bounded_and_drags_toward_its_target(pairs, encode):
    radius = 0.05
    spec = f"encoder-poison:fraction=1,radius={radius},steps=20"
    samples = contaminate(pairs, spec, encode=encode)
    grads = [parameter.grad for parameter in encode.parameters()]
    for i in range(6):
        (record,) = records(samples)[i]
        assert record["target"] != i
        assert record["radius"] == radius
        target = fit_bucket(pairs.image(record["target"]), samples.bucket(i))
        target = 2 * v2.to_dtype(target, torch.float32, scale=True) - 1
        dirty, clean = samples.sample(i), samples.clean(i)
        # Tolerance: float32 rounding of the bound and of the conversion to [-1, 1].
        assert (dirty - clean).abs().max() <= 2 * radius + 1e-6
        assert dirty.abs().max() <= 1
        assert distance(encode, dirty, target) < 0.9 * distance(encode, clean, target)
    assert [parameter.grad for parameter in encode.parameters()] == grads


def test_poison_of_a_linear_encoder_finds_the_nearest_corner():
    """encode = identity: the nearest point of the box to the target is known."""
    image, target = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    poisoned = imitate(image, target, lambda x: x, radius=0.1, steps=50, step_size=0.01)
    best = image + (target - image).clamp(-0.1, 0.1)
    # The attack ends within one step of it.
    assert (poisoned - best).abs().max() <= 0.01 + 1e-6


def test_poison_never_increases_the_distance_nor_clips_the_image():
    noisy = torch.tensor([-0.3, 0.5, 1.4]).reshape(3, 1, 1)
    far = imitate(noisy, noisy + 1, lambda x: x, radius=0.1, steps=1, step_size=0.5)
    assert torch.allclose(far, torch.tensor([-0.2, 0.6, 1.4]).reshape(3, 1, 1))
    same = imitate(noisy, noisy, lambda x: x, radius=0.1, steps=3, step_size=0.1)
    assert torch.equal(same, noisy)


def test_poison_works_under_no_grad(pairs, encode):
    samples = contaminate(pairs, ATTACK, encode=encode)
    fresh = contaminate(pairs, ATTACK, encode=encode)
    with torch.no_grad():
        without = all_samples(fresh)
    for one, other in zip(all_samples(samples), without, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    blind = contaminate(pairs, ATTACK, encode=torch.no_grad()(encode.forward))
    with pytest.raises(ValueError, match="differentiable"):
        all_samples(blind)


def test_checksums_are_equal_if_and_only_if_samples_are(pairs, encode, everything, tmp_path):
    """For many small changes: the checksum changes if and only if the sample does."""
    changed = write_pairs(tmp_path / "changed", change={0, 5})
    plain = ["gaussian:fraction=0.5,sigma=0.1", "jpeg:fraction=0.5,quality=30"]
    setups = [
        contaminate(pairs),
        contaminate(changed),
        *(contaminate(pairs, *plain, seed=seed) for seed in (0, 1, 2)),
        contaminate(pairs, plain[0], "jpeg:fraction=0.4,quality=30"),
        contaminate(pairs, plain[0], "jpeg:fraction=0.5,quality=31"),
        contaminate(pairs, "gaussian:fraction=0.5,sigma=0.11", plain[1]),
        contaminate(pairs, *plain[::-1]),
        ContaminatedPairs(pairs, [], 0, [(16, 16)]),
        *(contaminate(some, spec) for some in (pairs, changed) for spec in everything[:-1]),
        *(contaminate(some, *everything[:-1]) for some in (pairs, changed)),
        *(contaminate(some, ATTACK, encode=encode) for some in (pairs, changed)),
    ]
    for i in range(8):
        by_checksum = {}
        for samples in setups:
            sample = samples.sample(i)
            content = (tuple(sample.shape), sample.numpy().tobytes())
            assert by_checksum.setdefault(samples.checksum(i), content) == content
        assert len(set(by_checksum.values())) == len(by_checksum)


def test_fingerprint_covers_every_argument(pairs, tmp_path):
    prints = {
        contaminate(pairs).fingerprint(),
        contaminate(pairs, seed=1).fingerprint(),
        contaminate(pairs, IMAGES[0]).fingerprint(),
        contaminate(pairs, PAIRS[0]).fingerprint(),
        ContaminatedPairs(pairs, [], 0, [(16, 16)]).fingerprint(),
        contaminate(write_pairs(tmp_path / "changed", change={5})).fingerprint(),
    }
    assert len(prints) == 6
    assert contaminate(write_pairs(tmp_path / "moved")).fingerprint() in prints


def test_quarantine_has_the_broken_images_of_both_sources(pairs, strangers, monkeypatch):
    monkeypatch.setattr(pairs, "quarantine", [{"name": "mine", "reason": "broken"}])
    assert contaminate(pairs).quarantine == pairs.quarantine
    samples = contaminate(pairs, f"outliers:fraction=0,source={strangers}")
    assert [row["name"] for row in samples.quarantine] == ["mine", "broken.png"]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("watermak:fraction=1,text=a", "did you mean 'watermark'"),
        ("caption-shufle:fraction=1", "did you mean 'caption-shuffle'"),
        ("encoder-poison:fraction=1,radios=0.1", "did you mean 'radius'"),
        ("watermark:fraction=1", "needs `text`"),
        ("watermark:fraction=1,text=2024", "needs quotes: text='2024'"),
        ("watermark:fraction=1,text=' '", "must be one line of text"),
        ({"kind": "watermark", "fraction": 1, "text": "a\nb"}, "must be one line of text"),
        ("watermark:fraction=1,text=a,opacity=1.1", r"`opacity` must be a number in \[0, 1\]"),
        ("watermark:fraction=1,text=a,position=center", "random or tiled, got 'center'"),
        ("caption-truncate:fraction=1,keep=0", "caption-drop to remove all words"),
        ("caption-truncate:fraction=1,keep=1.5", "number of words"),
        ("caption-truncate:fraction=1,keep=all", "`keep` must be a number >= 0, got 'all'"),
        ("near-duplicate:fraction=1,sources=0", "whole number >= 1"),
        ("encoder-poison:fraction=1,radius=2", "radius"),
        ("encoder-poison:fraction=1,radius=0.1,steps=0", "steps"),
        ("encoder-poison:fraction=1,radius=0.1,step_size=-1", "step_size"),
        ("encoder-poison:fraction=1,radius=0.1,encode=3", "no parameter 'encode'"),
    ],
)
def test_wrong_contamination(spec, message):
    with pytest.raises(InputError, match=message):
        parse_contamination([spec])


def test_quoted_numbers_stay_text():
    (mark,) = parse_contamination(["watermark:fraction=1,text='2024'"])
    assert mark.text == "2024"


def test_impossible_corruptions_are_refused(pairs):
    with pytest.raises(InputError, match="--model"):
        contaminate(pairs, ATTACK)
    with pytest.raises(InputError, match="less than the 24 pairs"):
        contaminate(pairs, "near-duplicate:fraction=1,sources=24")


@pytest.mark.parametrize("spec", PAIRS)
def test_pair_corruptions_refuse_images_without_captions(strangers, spec):
    images = open_images(str(strangers), size=8, channels=3)
    with pytest.raises(InputError, match="needs image-caption pairs"):
        ContaminatedImages(images, parse_contamination([spec]), 0)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_dirty_copy_opens_as_pairs(pairs, tmp_path):
    samples = contaminate(pairs, *IMAGES, *PAIRS[:-1])
    contaminate_pairs(samples, tmp_path / "out")
    copy = open_pairs(str(tmp_path / "out"))
    assert copy.captions == [samples.caption(i) for i in range(COUNT)]
    assert copy.repeats == pairs.repeats
    assert copy.without_image == copy.quarantine == []
    for i in range(COUNT):
        assert copy.sizes[i] == samples.bucket(i)
        assert torch.equal(copy.image(i), to_bytes((samples.sample(i) + 1) / 2))
    assert rows(tmp_path / "out/manifest.jsonl") == list(samples.manifest())
    assert [row["original"] for row in rows(tmp_path / "out/metadata.jsonl")] == [
        pairs.name(i) for i in range(COUNT)
    ]


def test_command_attacks_the_encoder_of_the_model(pairs, encode, tmp_path, monkeypatch):
    class Components:
        def encode_means(self, samples):
            return encode(samples)

    def load_components(model, *, offline):
        assert (model, offline) == ("here", True)
        return Components()

    module = SimpleNamespace(load_components=load_components)
    monkeypatch.setitem(sys.modules, "latent_robust.latent.base.components", module)
    words = ["--pairs", "--resolution=16", "--model=here", "--offline", f"--data={pairs.spec}"]
    assert command(*words, f"--contamination={ATTACK}", f"--out={tmp_path}/out") == 0
    samples = ContaminatedPairs(pairs, parse_contamination([ATTACK]), 0, [(16, 16)], encode)
    copy = open_pairs(str(tmp_path / "out"))
    for i in range(COUNT):
        assert torch.equal(copy.image(i), to_bytes((samples.sample(i) + 1) / 2))


def command(*words):
    return main(["contaminate", *words])


def test_command(tmp_path, capsys, tree_hash):
    pairs = write_pairs(tmp_path / "pairs")
    with open(tmp_path / "pairs/metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "none.png", "text": "nothing"}')
    before = tree_hash(tmp_path / "pairs")
    words = ["--pairs", f"--data={tmp_path}/pairs", "--buckets", "--resolution=32", "--seed=3"]
    words.append("--contamination=caption-shuffle:fraction=0.5; jpeg:fraction=1,quality=9")
    assert command(*words, f"--out={tmp_path}/out") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("24 pairs, 1 quarantined")
    assert "none.png" in printed
    specs = parse_contamination(["caption-shuffle:fraction=0.5", "jpeg:fraction=1,quality=9"])
    samples = ContaminatedPairs(pairs, specs, 3, make_buckets(32))
    copy = open_pairs(str(tmp_path / "out"))
    assert copy.captions == [samples.caption(i) for i in range(COUNT)]
    assert copy.sizes == [samples.bucket(i) for i in range(COUNT)]
    assert tree_hash(tmp_path / "pairs") == before


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "needs --size, or --pairs and --resolution"),
        (["--pairs"], "--pairs needs --resolution"),
        (["--pairs", "--resolution=16", "--size=16"], "--size is for images"),
        (["--size=16", "--caption-column=text"], "--caption-column is for pairs"),
        (["--pairs", "--resolution=16"], "--model"),
    ],
)
def test_wrong_command(pairs, words, message, tmp_path, capsys):
    words = [*words, f"--data={pairs.spec}", f"--out={tmp_path}/out"]
    assert command(*words, f"--contamination={ATTACK}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
