"""The estimate against closed forms, and against a step that was really taken."""

import pytest
import torch
from torch import Tensor

from latent_robust.core import Weighting
from latent_robust.errors import InputError
from latent_robust.latent import memory
from latent_robust.latent.base.components import Components
from latent_robust.latent.config import LatentConfig
from latent_robust.latent.full_finetune import unfreeze_network
from latent_robust.latent.lora.adapters import add_lora
from latent_robust.latent.memory import (
    Memory,
    PeakBytes,
    cached_estimate,
    estimate_memory,
    require_memory,
)
from latent_robust.training.objectives import build_objective

from .tiny import make_pipeline

GIB = 2**30


def components_of(name: str = "flux", *, full: bool = True, **lora) -> Components:
    components = Components.of(make_pipeline(name), name)
    if full:
        unfreeze_network(components)
    else:
        add_lora(components, **{"rank": 4, "alpha": 4, **lora})
    return components


def item_of(components: Components) -> dict:
    """One encoded pair, as a cache gives it."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = components.encode_images(image)
    text = components.encode_text(["a red circle"])
    return {"mean": mean, "std": std, "text": text, "size": torch.tensor([[32, 32]])}


def estimate(components: Components, *, full: bool = True, **settings) -> Memory:
    config = LatentConfig(
        **{
            "full": full,
            "lora": not full,
            "objective": "ddpm",
            "weight": 3,
            "band": 0.5,
            **settings,
        }
    )
    return estimate_memory(components, config, item_of(components))


def real_peak(components: Components, config: LatentConfig) -> int:
    """Bytes of the step that training takes, with real numbers, beyond the gradients it leaves."""
    item, network = item_of(components), components.network
    batch = {
        key: value.expand(config.batch_size, *value.shape[1:]).clone()
        for key, value in {"sample": item["mean"], "size": item["size"], **item["text"]}.items()
    }
    sample, sizes = batch.pop("sample"), batch.pop("size")
    t = components.process.times[:1].repeat(config.batch_size)
    objective = build_objective(config, components.process)
    trained = [p for p in network.parameters() if p.requires_grad]
    with PeakBytes() as watch:
        denoise = components.family.denoiser(network, batch, sizes)
        loss = objective(denoise, sample, t, torch.randn_like(sample))
        torch.autograd.grad(loss.total, trained, allow_unused=True)
    return watch.peak - sum(p.nbytes for p in trained)


@pytest.mark.parametrize("size, attack", [(2, "gradient"), (8, "gradient"), (8, "displacement")])
@pytest.mark.parametrize("name", ["sd1", "sd3", "flux"])
def test_a_real_step_takes_what_was_estimated(name, size, attack):
    """The same operations on the same shapes. 1 %: looking up alpha and sigma is not estimated."""
    components = components_of(name)
    config = LatentConfig(
        full=True,
        weight=3,
        band=0.5,
        objective="robust-adversarial",
        batch_size=size,
        attack=attack,
    )
    estimated = estimate_memory(components, config, item_of(components)).step
    assert estimated == pytest.approx(real_peak(components, config), rel=0.01)


@pytest.mark.parametrize("name", ["sd3", "flux"])  # with buffers and without
def test_weights_and_state_are_counted_exactly(name):
    components = components_of(name)
    buffers = sum(b.nbytes for b in components.network.buffers())
    weights = sum(p.nbytes for p in components.network.parameters())
    plain = estimate(components, ema_decay=0)
    assert plain.weights == weights + buffers
    assert plain.state == weights + 2 * weights  # gradients; two moments
    assert estimate(components).state == 4 * weights  # and the average
    assert plain.total == plain.weights + plain.state + plain.step


def test_of_a_lora_only_the_adapters_have_state():
    components = components_of(full=False, text_encoder=True)
    adapters = {
        name: sum(p.nbytes for p in part.parameters() if p.requires_grad)
        for name, part in (("network", components.network), *components.text_encoders.items())
    }
    alone = estimate(components, full=False)
    assert alone.state == 4 * adapters["network"]
    both = estimate(components, full=False, text_encoder=True)
    assert both.state == 4 * sum(adapters.values())
    encoders = components.text_encoders.values()
    tensors = [t for encoder in encoders for t in (*encoder.parameters(), *encoder.buffers())]
    assert both.weights - alone.weights == sum(t.nbytes for t in tensors)


def test_activations_grow_with_the_batch():
    components = components_of()
    one, two, four = (estimate(components, batch_size=n).step for n in (1, 2, 4))
    # What is the same for every batch cancels; the rest is proportional.
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)
    assert four > two > one


def test_checkpointing_and_the_penalty_change_the_activations():
    components = components_of()
    robust = {"objective": "robust-adversarial", "penalty_fraction": 1.0}
    everything = estimate(components, **robust).step
    assert estimate(components).step < everything
    components.network.enable_gradient_checkpointing()
    assert estimate(components, **robust).step < 0.8 * everything


def test_half_precision_halves_the_activations_of_a_frozen_network():
    components = components_of(full=False)
    single = estimate(components, full=False)
    components.pipeline.to(torch.bfloat16)
    for parameter in components.network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    half = estimate(components, full=False, mixed_precision="bf16")
    assert half.weights < 0.7 * single.weights  # all but the adapters
    assert half.step < 0.8 * single.step


def test_estimating_leaves_no_trace():
    components = components_of()
    before = {name: p.clone() for name, p in components.network.named_parameters()}
    random_state = torch.get_rng_state()
    estimate(components, objective="robust-adversarial")
    for name, parameter in components.network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_fake_is_left_in_a_band_for_each_channel():
    """The estimate runs the very objective on tensors without values."""
    components = components_of()
    bands = [0.11, 0.12, 0.13, 0.14]
    estimate(components, objective="robust-random", band=bands)
    gate = Weighting("band", 3.0, bands).gate(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(gate.flatten(), torch.tensor(bands).square())


def test_an_estimate_is_remembered_for_the_same_step_only(tmp_path, monkeypatch):
    components, asked = components_of("sd1"), []
    item = item_of(components)

    def estimated(components, config, item):
        asked.append(config.batch_size)
        return Memory(1, 2, 3 * config.batch_size)

    monkeypatch.setattr(memory, "estimate_memory", estimated)

    def memoize_json(seed, **settings):
        config = LatentConfig(full=True, weight=3, band=0.5, seed=seed, **settings)
        return cached_estimate(tmp_path, components, config, item)

    assert memoize_json(0, batch_size=2) == memoize_json(1, batch_size=2) == Memory(1, 2, 6)
    assert memoize_json(0, batch_size=4) == Memory(1, 2, 12)
    assert memoize_json(0, batch_size=4, objective="ddpm") == Memory(1, 2, 12)
    assert memoize_json(0, batch_size=4, objective="ddpm", dropout=0.1) == Memory(1, 2, 12)
    assert asked == [2, 4, 4, 4]
    next(components.network.parameters()).requires_grad_(False)
    memoize_json(0, batch_size=2)
    assert asked == [2, 4, 4, 4, 2]
    (tmp_path / "memory.json").write_text("{")  # damaged
    memoize_json(0, batch_size=2)
    assert asked == [2, 4, 4, 4, 2, 2]


def test_peak_is_of_what_is_alive_at_once():
    with PeakBytes() as watch:
        first: Tensor | None = torch.empty(1000, dtype=torch.uint8)
        view = first[:10]
        assert watch.peak == 1000  # a view is no memory
        second = torch.empty(500, dtype=torch.uint8)
        del first, view
        third = torch.empty(700, dtype=torch.uint8)
    assert watch.peak == 1500
    assert watch.alive == second.nbytes + third.nbytes


def test_what_does_not_fit_is_refused_with_remedies(monkeypatch):
    """The weights are loaded by then, so that they need no further room."""
    needed = Memory(weights=100 * GIB, state=2 * GIB, step=6 * GIB)
    config = LatentConfig(full=True, batch_size=4)
    monkeypatch.setattr(memory, "free_memory", lambda device: 8 * GIB)
    require_memory(needed, torch.device("cpu"), config)
    monkeypatch.setattr(memory, "free_memory", lambda device: 7 * GIB)
    with pytest.raises(
        InputError, match=r"8\.00 GiB, but only 7\.00 GiB are free on cpu"
    ) as refused:
        require_memory(needed, torch.device("cpu"), config)
    message = str(refused.value)
    for remedy in ("--low-memory", "--gradient-checkpointing", "--batch-size", "bf16", "--lora"):
        assert remedy in message
    small = LatentConfig(lora=True, low_memory=True)
    with pytest.raises(InputError) as refused:
        require_memory(needed, torch.device("cpu"), small)
    assert "--resolution" in str(refused.value)
    for remedy in ("--gradient-checkpointing", "--batch-size", "bf16", "--lora"):
        assert remedy not in str(refused.value)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)  # nobody knows: go on
    require_memory(needed, torch.device("cpu"), config)


def test_memory_is_told_in_units_that_show_it():
    assert str(Memory(GIB, GIB // 2, 2 * GIB)) == (
        "3.50 GiB (weights 1.00, optimizer 0.50, activations 2.00)"
    )
    assert str(Memory(2**20, 2**19, 2**21)).startswith("3.50 MiB (weights 1.00")


def test_under_autocast_norms_are_in_float32_on_cuda_as_estimated(monkeypatch):
    """A CPU has no CUDA autocast to compare with; this is what its list of operations says."""
    norm = torch.nn.GroupNorm(2, 4).bfloat16()
    x = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
        with memory.norms_in_float32():
            assert norm(x).dtype == torch.float32
        assert norm(x).dtype == torch.bfloat16
    components = components_of("sd1", full=False)
    item = item_of(components)
    components.network.bfloat16()
    config = LatentConfig(lora=True, mixed_precision="bf16", objective="ddpm", batch_size=8)
    here = estimate_memory(components, config, item).step
    monkeypatch.setattr(type(components.network), "device", torch.device("cuda"))
    assert 1.1 * here < estimate_memory(components, config, item).step < 1.7 * here
