import errno
import hashlib
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2 import functional as v2

from latent_robust import files
from latent_robust.data import parse_contamination
from latent_robust.data.contamination.pair_dataset import ContaminatedPairs
from latent_robust.data.pairs import open_pairs
from latent_robust.errors import InputError
from latent_robust.latent.base.components import Components
from latent_robust.latent.cache import encoding, shards
from latent_robust.latent.cache.dataset import Uncached, build_cache
from latent_robust.training.batches import StepBatches, loader

FORK = multiprocessing.get_context("fork")


class Pairs:
    """Ten images in two buckets; four different captions, one of them empty."""

    def __init__(self, count=10, seed=0):
        self.seed = seed
        self.captions = [["a cat", "", "a dog", "a cat, a dog"][i % 4] for i in range(count)]
        self.contents = [f"image {i}" for i in range(count)]
        self.shapes = [(16, 16) if i % 3 else (8, 24) for i in range(count)]

    def __len__(self):
        return len(self.contents)

    def name(self, i):
        return f"{i}.png"

    def caption(self, i):
        return self.captions[i]

    def bucket(self, i):
        return self.shapes[i]

    def framing(self, i):
        return (*self.shapes[i], 0, 0, *self.shapes[i])

    def checksum(self, i):
        return hashlib.sha256(
            repr((self.contents[i], self.shapes[i], self.seed)).encode()
        ).hexdigest()

    def sample(self, i):
        seed = int(self.checksum(i)[:8], 16)
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(3, *self.shapes[i], generator=generator) * 2 - 1

    def buckets(self):
        return [[i for i in range(len(self)) if self.shapes[i] == b] for b in [(16, 16), (8, 24)]]


class Encoders:
    """A small convolution and a bag of bytes. Counts what it encodes."""

    def __init__(self, identity="model", seconds=0.0):
        self.identity, self.seconds = identity, seconds
        self.batches, self.texts = [], []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2, 2))
            self.words = torch.randn(256, 6)

    def encode_images(self, samples):
        self.batches.append(len(samples))
        time.sleep(self.seconds)
        mean, log = self.network(samples).chunk(2, dim=1)
        return mean, log.exp()

    def encode_text(self, captions):
        self.texts += captions
        words = [self.words[torch.tensor(list(c.encode()), dtype=torch.long)] for c in captions]
        pooled = torch.stack([w.sum(0) for w in words])
        return {"pooled": pooled, "hidden": pooled[:, None].expand(-1, 5, -1).bfloat16()}

    def empty_text(self):
        return {"pooled": torch.zeros(1, 6), "hidden": torch.zeros(1, 5, 6).bfloat16()}

    @property
    def images(self):
        return sum(self.batches)


def build(folder, pairs=None, components=None, batch_size=2, **more):
    return build_cache(
        pairs or Pairs(), components or Encoders(), folder, batch_size=batch_size, **more
    )


def everything(dataset):
    """All items, in batches of one bucket."""
    return [dataset.__getitems__(bucket) for bucket in dataset.buckets()]


def assert_equal(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    else:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def written(folder):
    return sorted(folder.glob("*.safetensors"))


# ------------------------------------------------------------------ what is in it


def test_cached_and_uncached_items_are_bit_equal_in_equal_batches(tmp_path):
    pairs, components = Pairs(), Encoders()
    cache = build(tmp_path, pairs, components)
    uncached = Uncached(pairs, components)
    buckets = pairs.buckets()
    assert cache.buckets() == uncached.buckets() == buckets
    assert len(cache) == len(uncached) == 10
    for bucket in buckets:
        for batch in (bucket[i : i + 2] for i in range(0, len(bucket), 2)):
            assert_equal(cache.__getitems__(batch), uncached.__getitems__(batch))
    assert_equal(cache.empty_text, uncached.empty_text)


def test_captions_are_also_encoded_with_the_words_for_dirt(tmp_path):
    pairs, components = Pairs(), Encoders()
    pairs.captions[3] = ""
    tags = ["low quality", "", "", "blurry", *[""] * 6]
    cache = build(tmp_path, pairs, components, tags=tags)
    batch = cache.__getitems__([3, 0])
    assert_equal(batch, Uncached(pairs, components, tags).__getitems__([3, 0]))
    wanted = components.encode_text(["blurry", f"{pairs.captions[0]}, low quality"])
    assert_equal(batch["tagged"], wanted)
    assert_equal(batch["tag"], components.encode_text(["blurry", "low quality"]))
    assert "tagged" not in build(tmp_path, pairs, components).__getitems__([3, 0])


def test_shapes_and_dtypes(tmp_path):
    cache = build(tmp_path)
    batch = cache.__getitems__([3, 0])
    assert batch["index"].tolist() == [3, 0]
    assert batch["mean"].shape == batch["std"].shape == (2, 4, 4, 12)
    assert batch["mean"].dtype == torch.float32
    assert batch["size"].tolist() == [[8, 24, 0, 0, 8, 24]] * 2
    assert batch["text"]["hidden"].shape == (2, 5, 6)
    assert batch["text"]["hidden"].dtype == torch.bfloat16  # as the encoder gave it
    assert cache.empty_text["pooled"].shape == (1, 6)


def test_equal_captions_and_images_are_encoded_once(tmp_path):
    pairs, components = Pairs(), Encoders()
    pairs.captions = ["a cat"] * 10
    pairs.contents[4] = pairs.contents[1]
    cache = build(tmp_path, pairs, components)
    assert components.texts == ["a cat"]
    assert components.images == 9
    assert cache.summary == ("encoded 9 images and 1 captions (0 and 0 were cached already)")


def test_nothing_in_the_folder_is_a_pickle(tmp_path):
    build(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("workers", [0, 2])
def test_it_serves_a_dataloader(tmp_path, workers):
    cache = build(tmp_path)
    batches = StepBatches(cache.buckets(), 2, seed=0)
    served = iter(loader(cache, batches, workers, pin=False))
    for number in range(6):
        assert_equal(next(served), cache.__getitems__(batches.batch(number)))


def test_it_survives_pickling(tmp_path):
    cache = build(tmp_path)
    before = everything(cache)
    assert_equal(everything(pickle.loads(pickle.dumps(cache))), before)


def test_families_cached_and_uncached_items_agree(tmp_path, family_name, pipelines):
    pairs, components = Pairs(), Components.of(pipelines(family_name), family_name)
    cache, uncached = build(tmp_path, pairs, components), Uncached(pairs, components)
    assert_equal(cache.empty_text, uncached.empty_text)
    for pair in pairs.buckets()[0][:2], pairs.buckets()[1][:2]:
        mine, theirs = cache.__getitems__(pair), uncached.__getitems__(pair)
        # Images are cached in the same batches, captions in others.
        assert_equal(mine["mean"], theirs["mean"])
        assert_equal(mine["std"], theirs["std"])
        torch.testing.assert_close(mine["text"], theirs["text"])
    components.encode_images = components.encode_text = None  # not needed any more
    assert build(tmp_path, pairs, components).summary.startswith("encoded 0 images and 0")


# ------------------------------------------------------------------ never stale, never twice


def test_a_second_build_encodes_nothing(tmp_path):
    first = everything(build(tmp_path))
    components = Encoders()
    again = build(tmp_path, components=components)
    assert components.images == 0
    assert components.texts == []
    assert again.summary == "encoded 0 images and 0 captions (10 and 4 were cached already)"
    assert_equal(everything(again), first)


def other_image(pairs, components):
    pairs.contents[2] = "another"
    return 1, 0


def other_caption(pairs, components):
    pairs.captions[2] = "a new caption"
    return 0, 1


def other_contamination(pairs, components):
    pairs.seed = 1
    return 10, 0


def other_resolution(pairs, components):
    pairs.shapes[1] = (8, 24)
    return 1, 0


def other_model(pairs, components):
    components.identity = "another"
    return 10, 4


def more_pairs(pairs, components):
    pairs.__init__(count=12)
    return 2, 0


@pytest.mark.parametrize(
    "change",
    [
        *(other_image, other_caption, other_contamination),
        *(other_resolution, other_model, more_pairs),
    ],
)
def test_what_changed_is_encoded_again_and_only_that(tmp_path, change):
    build(tmp_path)
    pairs, components = Pairs(), Encoders()
    images, captions = change(pairs, components)
    cache = build(tmp_path, pairs, components, batch_size=1)
    assert (components.images, len(components.texts)) == (images, captions)
    # To rounding, as some were encoded in batches of 2 and others alone.
    for left, right in zip(everything(cache), everything(Uncached(pairs, components)), strict=True):
        torch.testing.assert_close(left["mean"], right["mean"])
        assert_equal(left["text"], right["text"])


def test_contaminated_pairs_of_a_folder(tmp_path):
    """The real pairs: what the contamination did not touch is found again."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for index in range(12):
        noise = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
        v2.to_pil_image(noise).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"caption {index}")
    pairs = open_pairs(str(folder))

    def encoded(text, seed):
        dirty = ContaminatedPairs(pairs, parse_contamination([text]), seed, [(16, 16)])
        encoders = Encoders()
        build(tmp_path / "cache", dirty, encoders)
        hit = {row["index"] for row in dirty.manifest() if row["corruptions"]}
        return encoders.images, hit

    half = "gaussian:fraction=0.5,sigma=0.2"
    count, first = encoded(half, seed=0)
    assert count == 12
    assert encoded(half, seed=0)[0] == 0
    count, second = encoded(half, seed=1)
    # Those now clean that were dirty before, and all dirty ones: their noise is another.
    assert count == len(first | second)
    assert first != second


# ------------------------------------------------------------------ damage


def truncated(data):
    return data[: len(data) // 2]


def empty(data):
    return b""


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def other_key(data):
    """The header is hashed too."""
    at = data.index(b"/mean") if b"/mean" in data else data.index(b"/pooled")
    return data[: at - 1] + (b"0" if data[at - 1 : at] != b"0" else b"1") + data[at:]


def no_header(data):
    return b"not safetensors" * 100


@pytest.mark.parametrize("damage", [truncated, empty, flipped, other_key, no_header])
@pytest.mark.parametrize("kind, encoded", [("latents", (10, 0)), ("text", (0, 4))])
def test_a_damaged_shard_is_named_and_its_items_made_again(tmp_path, caplog, damage, kind, encoded):
    whole = everything(build(tmp_path))
    [path] = tmp_path.glob(f"{kind}-*")
    path.write_bytes(damage(path.read_bytes()))
    components = Encoders()
    with caplog.at_level(logging.WARNING):
        again = build(tmp_path, components=components)
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()
    assert (components.images, len(components.texts)) == encoded
    assert_equal(everything(again), whole)
    assert not path.exists()  # so that it is named once


def test_a_missing_shard_is_made_again(tmp_path):
    whole = everything(build(tmp_path))
    written(tmp_path)[0].unlink()
    assert_equal(everything(build(tmp_path)), whole)


def test_a_copied_folder_is_hashed_once(tmp_path, monkeypatch):
    build(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    hashed = []
    digest = shards._digest
    monkeypatch.setattr(shards, "_digest", lambda *a: hashed.append(1) or digest(*a))
    components = Encoders()
    build(tmp_path / "there", components=components)
    assert len(hashed) == 2
    assert components.images == 0
    hashed.clear()
    build(tmp_path / "there")
    assert hashed == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "latents-mine.safetensors").write_bytes(b"broken")
    (tmp_path / ".notes.tmp").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    os.utime(tmp_path / ".notes.tmp", (0, 0))
    build(tmp_path)
    assert before < {path.name for path in tmp_path.iterdir()}


def test_a_shard_that_disappears_during_training_is_a_clear_error(tmp_path):
    cache = pickle.loads(pickle.dumps(build(tmp_path)))
    for path in written(tmp_path):
        path.unlink()
    with pytest.raises(InputError, match=r"latents-.*start again"):
        cache.__getitems__([1])


# ------------------------------------------------------------------ killed, full, several at once


def test_a_killed_build_goes_on_where_it_was_to_the_same_bits(tmp_path, monkeypatch):
    whole = everything(build(tmp_path / "whole"))
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0)  # a shard for each batch
    folder = tmp_path / "killed"
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        process = FORK.Process(target=build, args=(folder, Pairs(), Encoders(seconds=0.03)))
        process.start()
        time.sleep(0.05 + 0.1 * torch.rand((), generator=generator).item())
        process.kill()
        process.join()
    kept = len(list(folder.glob("latents-*.safetensors")))
    components = Encoders()
    assert_equal(everything(build(folder, components=components)), whole)
    # No batch that was written is lost; there are five, 3 of one bucket, 2 of the other.
    assert len(components.batches) == 5 - kept


def test_the_remains_of_a_killed_write_are_removed_when_they_are_old(tmp_path):
    name = f".latents-{'0' * 32}.safetensors.7.tmp"
    for folder, age in (("new", 0), ("old", 7200)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        build(tmp_path / folder)
    assert (tmp_path / "new" / name).exists()  # another process may be writing it
    assert not (tmp_path / "old" / name).exists()


def test_shards_are_bounded(tmp_path, monkeypatch):
    # A batch of two takes 2 * 2 * 4 * 8 * 8 * 4 = 4096 bytes, or three quarters of that.
    monkeypatch.setattr(shards, "SHARD_BYTES", 4096)
    cache = build(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.glob("latents-*")]
    assert len(sizes) > 1
    assert max(sizes) < 2 * 4096 + 2048  # the last batch may pass the bound; and the header
    assert_equal(everything(cache), everything(build(tmp_path)))


def test_several_independent_builds_at_once(tmp_path):
    workers = [
        FORK.Process(target=build, args=(tmp_path, Pairs(), Encoders(seconds=0.01)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    components = Encoders()
    again = build(tmp_path, components=components)
    assert components.images == 0
    assert_equal(everything(again), everything(build(tmp_path / "alone")))


class Ranks:
    """What `build_cache` uses of an Accelerator."""

    def __init__(self, process_index, barrier):
        self.process_index, self.num_processes = process_index, barrier.parties
        self.wait_for_everyone = barrier.wait

    def main_process_first(self):
        return nullcontext()


def build_as_rank(folder, rank, barrier, results):
    components = Encoders()
    cache = build(folder, Pairs(), components, accelerator=Ranks(rank, barrier))
    results.put((rank, components.images, len(components.texts), cache.summary))
    assert_equal(everything(cache), everything(build(folder)))


def test_processes_of_one_run_share_the_work_and_read_the_whole(tmp_path):
    barrier, results = FORK.Barrier(2), FORK.SimpleQueue()
    ranks = [
        FORK.Process(target=build_as_rank, args=(tmp_path, rank, barrier, results))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    (_, *first, summary), (_, *second, same) = sorted(results.get() for _ in ranks)
    # Batches of 2: 6 + 4 images in five batches, 4 captions in two.
    assert (first, second) == ([6, 2], [4, 2])
    assert summary == same == "encoded 10 images and 4 captions (0 and 0 were cached already)"


def test_a_full_disk_is_a_clear_error_and_what_was_written_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0)
    replace, left = os.replace, [3]

    def full(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*args)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(InputError, match=r"No space left.*has room"):
        build(tmp_path)
    monkeypatch.undo()
    assert len(written(tmp_path)) == len(list(tmp_path.iterdir())) == 3
    components = Encoders()
    build(tmp_path, components=components)
    assert len(components.batches) == 4  # two shards were text, one the first of five batches


def test_a_cache_that_will_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"latents of 10 items take .* GB.*--no-cache"):
        build(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        build(tmp_path / "file")


class Overflowing(Encoders):
    def encode_images(self, samples):
        mean, std = super().encode_images(samples)
        mean[-1, 0, 0, 0] = float("nan")
        return mean, std


def test_non_finite_latents_are_never_cached(tmp_path):
    with pytest.raises(InputError, match=r"VAE.*non-finite values for '3.png'.*bf16"):
        build(tmp_path, components=Overflowing())
    assert not list(tmp_path.glob("latents-*"))
