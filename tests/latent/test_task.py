"""What a training step is given, on pairs that are made up."""

import pytest
import torch

from latent_robust.core import Levels, NoiseProcess, derive_generator
from latent_robust.latent.base.components import Components
from latent_robust.latent.config import LatentConfig
from latent_robust.latent.lora.adapters import add_lora
from latent_robust.latent.task import BatchConditions, LatentTask
from latent_robust.training.batches import StepBatches

from .tiny import make_pipeline

WIDTH = 64


class Encoded:
    """Of `count` pairs in two buckets, what LatentCache gives; pair i says i + 1 everywhere."""

    empty_text = {"text": torch.zeros(1, 5, WIDTH), "pooled": torch.full((1, WIDTH), -1.0)}

    def __init__(self, count=8, std=0.0):
        self.count, self.std = count, std

    def __len__(self):
        return self.count

    def buckets(self):
        return [list(range(0, self.count, 2)), list(range(1, self.count, 2))]

    def __getitems__(self, indices):
        index = torch.tensor(indices)
        number = index.float() + 1

        def text(said):
            return {
                "text": said.view(-1, 1, 1).expand(-1, 5, WIDTH).clone(),
                "pooled": said.view(-1, 1).expand(-1, WIDTH).clone(),
            }

        return {
            "index": index,
            "mean": number.view(-1, 1, 1, 1).expand(-1, 4, 8, 8).clone(),
            "std": torch.full((len(index), 4, 8, 8), self.std),
            "text": text(number),
            "tagged": text(number + 100),
            "tag": text(0 * number + 50),
            "size": torch.tensor([[16, 16]]).expand(len(index), 2),
        }


def make_task(
    loaded,
    *,
    family="sd1",
    dataset=None,
    training=range(8),
    levels=None,
    doubtful=None,
    **settings,
) -> LatentTask:
    config = LatentConfig(**{"lora": True, **settings})
    more = {"levels": levels, "doubtful": doubtful}
    return LatentTask(config, loaded(family), dataset or Encoded(), training, **more)


def prepare(task: LatentTask, indices, *where):
    generator = derive_generator(0, "step", *where)
    return task.prepare(task.dataset.__getitems__(indices), generator)


def test_a_dropped_caption_is_the_empty_one_in_all_its_parts(loaded):
    task = make_task(loaded, caption_dropout=0.5)
    indices = list(range(8)) * 8
    _, (text, *_) = prepare(task, indices, 0)
    number = torch.tensor(indices) + 1.0
    dropped = (text["pooled"] == -1).all(1)
    assert 16 < dropped.sum() < 48  # 64 draws of 1/2: beyond four standard deviations of 4
    for key, value in text.items():
        empty = Encoded.empty_text[key].expand_as(value)
        assert torch.equal(value[dropped], empty[dropped]), key
        said = number.view(-1, *[1] * (value.ndim - 1)).expand_as(value)
        assert torch.equal(value[~dropped], said[~dropped]), key


def test_which_captions_are_dropped_depends_on_seed_and_step_alone(loaded):
    task = make_task(loaded, caption_dropout=0.5)
    indices = list(range(8)) * 8
    torch.manual_seed(1)
    first = prepare(task, indices, 3)
    torch.manual_seed(2)
    again = prepare(task, indices, 3)
    other = prepare(task, indices, 4)
    assert torch.equal(first[1][0]["text"], again[1][0]["text"])
    assert not torch.equal(first[1][0]["text"], other[1][0]["text"])


def test_without_dropout_and_noise_captions_are_what_was_encoded(loaded):
    task = make_task(loaded, caption_dropout=0.0)
    batch = task.dataset.__getitems__([1, 5])
    _, (text, sizes, *_) = prepare(task, [1, 5], 0)
    assert all(torch.equal(text[key], batch["text"][key]) for key in text)
    assert torch.equal(sizes, batch["size"])


def test_caption_noise_has_the_length_it_says(loaded):
    """The mean square length of each vector is caption_noise squared, whatever the width; the mean
    over n vectors of `width` values strays by sqrt(2 / (n width)) of it, here .9 %."""
    task = make_task(loaded, caption_dropout=0.0, caption_noise=0.7)
    indices = list(range(8)) * 10
    _, (text, *_) = prepare(task, indices, 0)
    moved = text["text"] - task.dataset.__getitems__(indices)["text"]["text"]
    assert moved.square().sum(-1).mean().sqrt().item() == pytest.approx(0.7, rel=0.02)


def test_caption_noise_does_not_touch_dropped_captions(loaded):
    """Guidance compares with the empty caption itself."""
    task = make_task(loaded, caption_dropout=0.5, caption_noise=1.0)
    _, (text, *_) = prepare(task, list(range(8)) * 4, 0)
    assert (text["text"] == 0).flatten(1).all(1).any()


def test_a_sample_is_a_draw_from_the_posterior(loaded):
    task = make_task(loaded, dataset=Encoded(std=0.5))
    indices = [3] * 64
    sample, _ = prepare(task, indices, 0)
    # 16,384 draws: 1.5 % is four standard errors of the mean, and more of the deviation.
    assert sample.mean().item() == pytest.approx(4, abs=0.016)
    assert sample.std().item() == pytest.approx(0.5, rel=0.03)
    fixed, _ = prepare(make_task(loaded), indices, 0)
    assert (fixed == 4).all()


def test_held_out_pairs_are_never_trained_on_and_all_others_are(loaded):
    task = make_task(loaded, training=[0, 1, 2, 4, 6])
    assert task.buckets == [[0, 2, 4, 6], [1]]
    batches = StepBatches(task.buckets, 2, seed=0)
    seen = [batches.batch(number) for number in range(30)]
    assert {index for batch in seen for index in batch} == {0, 1, 2, 4, 6}
    assert all(len({index % 2 for index in batch}) == 1 for batch in seen)  # of one bucket


@pytest.mark.parametrize(
    ("sampling", "family", "logit_normal"),
    [
        ("auto", "sd1", False),
        ("auto", "flux", True),
        ("uniform", "flux", False),
        ("logit-normal", "sd1", True),
    ],
)
def test_times_are_drawn_as_the_family_was_trained(loaded, sampling, family, logit_normal):
    """Of a logit-normal variable P(|u - 1/2| < 1/4) = P(|z| < log 3) = .728; of a uniform one .5.
    4,000 draws: .03 is four standard errors."""
    task = make_task(loaded, family=family, time_sampling=sampling)
    t = task.draw_times(4000, torch.Generator().manual_seed(0))
    times = task.process.times
    assert torch.isin(t, times).all()
    middle = times[len(times) // 4 : -len(times) // 4]
    inside = ((t >= middle.min()) & (t <= middle.max())).float().mean().item()
    assert inside == pytest.approx(0.728 if logit_normal else 0.5, abs=0.03)


@pytest.mark.parametrize("sampling", ["uniform", "logit-normal"])
def test_times_are_a_function_of_the_generator(loaded, sampling):
    task = make_task(loaded, time_sampling=sampling)
    first, again, other = (
        task.draw_times(64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_of_trained_text_encoders_only_adapted_ones_are_put_in_training_mode():
    """T5 has dropout, which would blur frozen embeddings and differ between the two branches."""
    components = Components.of(make_pipeline("sd3"), "sd3")
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    config = LatentConfig(lora=True, text_encoder=True, caption_dropout=0.0)
    task = LatentTask(config, components, Encoded(), range(8), ["a cat"] * 8)
    assert isinstance(components.process, NoiseProcess)
    task.network.train()
    assert components.text_encoders["text_encoder"].training
    assert not components.text_encoders["text_encoder_3"].training
    noisy, t = torch.zeros(2, 4, 8, 8), components.process.times[:2]
    told = BatchConditions(["a cat", "a dog"], torch.tensor([[16, 16]] * 2))
    denoise = task.denoiser(task.network, told)
    both = denoise(noisy, t, torch.arange(2))
    assert torch.equal(both, denoise(noisy, t, torch.arange(2)))
    # A row of its own is the same to rounding: products of another batch size are summed anew.
    torch.testing.assert_close(denoise(noisy[:1], t[:1], torch.arange(1)), both[:1])
    assert any(p.requires_grad for p in task.network.text_encoders.parameters())
    both.sum().backward()
    adapters = [p for n, p in task.network.text_encoders.named_parameters() if "lora_B" in n]
    assert all(p.grad is not None and p.grad.any() for p in adapters)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_every_adapter_of_the_text_encoders_has_a_gradient(family):
    """Several processes wait for those of all of them."""
    components = Components.of(make_pipeline(family), family)
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    config = LatentConfig(lora=True, text_encoder=True)
    network = LatentTask(config, components, Encoded(), range(8), ["a cat"] * 8).network
    t = components.process.times[:2]
    latents = torch.zeros(2, components.network.config.in_channels, 8, 8)
    network(latents, t, ["a cat", None], torch.tensor([[16, 16]] * 2)).sum().backward()
    trained = dict(network.named_parameters()).items()
    assert [n for n, p in trained if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_trained_text_encoders_drop_a_caption_to_what_guidance_compares_with(family):
    components = Components.of(make_pipeline(family), family)
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    config = LatentConfig(lora=True, text_encoder=True, caption_dropout=0.9999)
    task = LatentTask(config, components, Encoded(), range(8), ["a cat"] * 8)
    _, (captions, sizes, *_) = prepare(task, [0, 2])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = components.process.times[:2]
    empty = {k: v.expand(2, *v.shape[1:]) for k, v in components.empty_text().items()}
    task.network.eval()
    with torch.no_grad():
        found = task.network(latents, t, captions, sizes)
        wanted = components.family.denoiser(components.network, empty, sizes)(latents, t)
    torch.testing.assert_close(found, wanted)


def test_with_trained_text_encoders_each_row_has_the_caption_of_its_pair():
    """In the batch, and in the rows of it that the regularizer asks for."""
    components = Components.of(make_pipeline("sd1"), "sd1")
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    config = LatentConfig(lora=True, text_encoder=True, caption_dropout=0.0)
    captions = [f"number {i}" for i in range(8)]
    task = LatentTask(config, components, Encoded(), range(8), captions)
    sample, conditions = prepare(task, [4, 0, 6])
    assert conditions[0] == ["number 4", "number 0", "number 6"]
    noisy, t = sample[[2, 0]], components.process.times[[100, 900]]
    sizes = torch.tensor([[16, 16]] * 2)
    task.network.eval()
    with torch.no_grad():
        found = task.denoiser(task.network, conditions)(noisy, t, torch.tensor([2, 0]))
        text = components.encode_text(["number 6", "number 4"])
        wanted = components.family.denoiser(components.network, text, sizes)(noisy, t)
    torch.testing.assert_close(found, wanted)


def test_doubtful_captions_are_left_out(loaded):
    doubtful = torch.arange(8) == 3
    task = make_task(loaded, doubtful=doubtful, caption_dropout=0.0)
    _, (text, *_) = prepare(task, [3, 4])
    assert (text["pooled"] == -1).all(1).tolist() == [True, False]


# -------------------------------------------------------------------- words for dirty samples

# Pair 0 is clean, pair 1 dirty below s = 1, pair 2 at every level.
FOUND = Levels(torch.zeros(8), torch.tensor([0, 1, torch.inf, *[0] * 5]))
TAGGED = {"objective": "audited", "tag_dirt": "low quality"}


def said(task, conditions, times, rows, monkeypatch) -> dict:
    """The text that the network gets for these rows of a batch at these times."""
    heard = {}

    def predict(self, network, noisy, t, text, sizes):
        heard.update(text)
        return noisy

    monkeypatch.setattr(type(task.components.family), "predict", predict)
    noisy = torch.zeros(len(rows), 4, 8, 8)
    task.denoiser(task.network, conditions)(noisy, times, torch.tensor(rows))
    return heard


def test_dirt_is_in_the_caption_below_the_level_that_hides_it(loaded, monkeypatch):
    task = make_task(loaded, levels=FOUND, caption_dropout=0.0, **TAGGED)
    _, conditions = prepare(task, [0, 1, 2])
    low, high = (task.process.time_of(s) for s in (0.5, 2.0))
    rows = [2, 1, 0, 2, 1, 0]
    heard = said(task, conditions, torch.stack([low] * 3 + [high] * 3), rows, monkeypatch)
    assert heard["pooled"][:, 0].tolist() == [103, 102, 1, 103, 2, 1]
    assert heard["text"][:, 4, 0].tolist() == [103, 102, 1, 103, 2, 1]


def test_a_dropped_caption_leaves_the_words_for_dirt(loaded, monkeypatch):
    """So what guidance compares with is learned from clean samples."""
    task = make_task(loaded, levels=FOUND, caption_dropout=0.9999, **TAGGED)
    _, conditions = prepare(task, [0, 1, 2])
    low = task.process.time_of(0.5)
    heard = said(task, conditions, low.expand(3), [0, 1, 2], monkeypatch)
    assert heard["pooled"][:, 0].tolist() == [-1, 50, 50]
    assert heard["text"][:, 0, 0].tolist() == [0, 50, 50]


def test_trained_text_encoders_read_the_words_for_dirt():
    components = Components.of(make_pipeline("sd1"), "sd1")
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    config = LatentConfig(lora=True, text_encoder=True, caption_dropout=0.0, **TAGGED)
    captions = ["a cat", "a dog", ""]
    tags = ["low quality"] * 8
    task = LatentTask(config, components, Encoded(), range(8), captions, None, FOUND, tags)
    sample, conditions = prepare(task, [0, 1, 2])
    assert conditions.tagged == ["a cat, low quality", "a dog, low quality", "low quality"]
    t = torch.stack([task.process.time_of(0.5)] * 3)
    task.network.eval()
    with torch.no_grad():
        found = task.denoiser(task.network, conditions)(sample, t, torch.arange(3))
        wanted = task.network(sample, t, ["a cat", *conditions.tagged[1:]], conditions.sizes)
    assert torch.equal(found, wanted)
