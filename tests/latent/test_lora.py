"""What training may change, and that the files it leaves are what was trained."""

import hashlib
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latent_robust.core import derive_generator, make_objective
from latent_robust.errors import InputError
from latent_robust.latent.base.components import Components, load_components
from latent_robust.latent.full_finetune import save_network, unfreeze_network
from latent_robust.latent.lora.adapters import (
    adapted_parts,
    add_lora,
    freeze,
    lora_parameters,
)
from latent_robust.latent.lora.files import load_lora, save_lora
from latent_robust.latent.lora.verify import verify_lora

from .tiny import make_pipeline

CAPTIONS = ["a cat", "a dog"]
DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"


def make(name, dtype=torch.float32) -> Components:
    pipeline = make_pipeline(name)
    return Components.of(pipeline if dtype == torch.float32 else pipeline.to(dtype), name)


def trained(name, dtype=torch.float32, **options) -> Components:
    """As if training had moved every adapter: alpha != rank, B != 0, magnitudes changed."""
    components = make(name, dtype)
    add_lora(components, **{"rank": 3, "alpha": 6.0, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in adapted_parts(components).values():
            part.eval()
            for key, parameter in part.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.2, generator=generator)
                elif "magnitude" in key:
                    parameter.mul_(1.3)
    return components


def batch(components):
    """=>  sample, t, noise, denoise for two captioned images."""
    side = 2 * components.family.multiple * 4
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
    with torch.no_grad():
        sample, _ = components.encode_images(images)
    noise = torch.randn(sample.shape, generator=generator)
    t = components.process.times[[200, 600]]
    text, sizes = components.encode_text(CAPTIONS), torch.tensor([[side, side]] * 2)
    return sample, t, noise, components.family.denoiser(components.network, text, sizes)


def prediction(components):
    sample, t, noise, denoise = batch(components)
    with torch.no_grad():
        return denoise(components.process.add_noise(sample, noise, t), t)


def backward(components):
    """One robust step's gradients, masks of dropout from a fixed random state."""
    sample, t, noise, denoise = batch(components)
    torch.manual_seed(0)
    objective = make_objective("robust-adversarial", components.process)
    objective(denoise, sample, t, noise, derive_generator(0)).total.backward()


def train(components, parameters, steps):
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    components.network.train()
    for _ in range(steps):
        backward(components)
        optimizer.step()
        optimizer.zero_grad()
    components.network.eval()


def hashes(components) -> dict[str, str]:
    return {
        f"{part}.{key}": hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
        for part, module in components.pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for key, value in module.state_dict().items()
    }


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def names(components) -> list[str]:
    network = components.network.named_parameters()
    prefix = components.family.network_name
    return [f"{prefix}.{key}" for key, p in network if p.requires_grad]


def idle(components, kind) -> set[str]:
    """SD 3 drops what its last block makes of the captions, and so what they ask for there."""
    last = "transformer_blocks.1.attn.add_q_proj"
    return {
        k for k in names(components) if components.family.name == "sd3" and last in k and kind in k
    }


# ------------------------------------------------------------------ what is trained


def test_new_adapters_change_nothing(family_name):
    components = make(family_name)
    freeze(components)  # torch multiplies in another order by weights that require gradients
    before = prediction(components)
    add_lora(components, rank=4, alpha=8)
    assert torch.equal(prediction(components), before)


def test_a_step_changes_only_the_adapters(family_name):
    components = make(family_name)
    add_lora(components, rank=4, alpha=8)
    before = hashes(components)
    train(components, lora_parameters(components), steps=1)
    moved = changed(before, hashes(components))
    assert all("lora_" in key for key in moved)
    # B = 0: A has no gradient, but weight decay moves it.
    assert moved == {key for key in before if ".lora_" in key} - idle(components, "lora_B")


def test_full_fine_tuning_changes_only_the_network(family_name, tmp_path):
    components = make(family_name)
    unfreeze_network(components)
    before = hashes(components)
    train(components, list(components.network.parameters()), steps=2)
    moved = changed(before, hashes(components))
    network = components.family.network_name
    assert moved
    assert all(key.startswith(f"{network}.") for key in moved)

    folder = save_network(components, tmp_path)
    assert folder == tmp_path / network
    again = type(components.network).from_pretrained(folder)
    assert all(
        map(torch.equal, again.state_dict().values(), components.network.state_dict().values())
    )
    components.pipeline.register_modules(**{network: again})
    after = prediction(components)
    components.pipeline.register_modules(**{network: make(family_name).network})
    assert not torch.equal(after, prediction(components))


def test_a_saved_network_replaces_an_older_one_as_a_whole(tmp_path):
    components = make("sd1")
    save_network(components, tmp_path)
    (tmp_path / "unet/left-over").touch()
    (tmp_path / ".unet.tmp").mkdir()  # a run that was killed while it wrote
    save_network(components, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unet"]
    assert not (tmp_path / "unet/left-over").exists()


def test_checkpointing_leaves_the_gradients_as_they_are(family_name):
    gradients = []
    for checkpointing in (False, True):
        components = trained(family_name, dropout=0.2)
        components.network.train()
        if checkpointing:
            components.network.enable_gradient_checkpointing()
        backward(components)
        gradients.append([p.grad for p in lora_parameters(components)])
    assert all(map(torch.equal, *gradients))
    reached = {key for key, g in zip(names(components), gradients[0], strict=True) if g.any()}
    assert reached == set(names(components)) - idle(components, "lora_")


def test_first_values_are_a_function_of_the_seed():
    def values(seed):
        components = make("sdxl")
        add_lora(components, rank=2, alpha=2, text_encoder=True, seed=seed)
        return lora_parameters(components)

    state = torch.get_rng_state()
    first = values(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert all(map(torch.equal, first, values(0)))
    assert not all(map(torch.equal, first, values(1)))


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux"])
def test_adapters_of_a_bf16_network_are_float32(name, tmp_path):
    components = trained(name, torch.bfloat16, text_encoder=True)
    assert {p.dtype for p in lora_parameters(components)} == {torch.float32}
    assert prediction(components).dtype == torch.float32
    files = save_lora(components, tmp_path)
    again = make(name, torch.bfloat16)
    load_lora(again, files[0])
    assert all(map(torch.equal, lora_parameters(components), lora_parameters(again)))
    differences = verify_lora(components, files, lambda: make(name, torch.bfloat16))
    assert set(differences.values()) == {0.0}


# ------------------------------------------------------------------ targets


def adapted_layers(components) -> list[str]:
    modules = components.network.named_modules()
    return [name for name, module in modules if isinstance(module, LoraLayer)]


@pytest.mark.parametrize(
    "name, default, attention, both",
    # Counted by hand. U-Nets: blocks x (2 attentions x 4 projections, 2 feed-forward layers). SD 3:
    # two blocks of 8 and 4, of which the last one has no output for the captions. FLUX: a double
    # block of 8 and 4, a single block of 3 and 1.
    [
        ("sd1", 4 * 8, 4 * 8, 4 * 10),
        ("sd2", 4 * 8, 4 * 8, 4 * 10),
        ("sdxl", 8 * 8, 8 * 8, 8 * 10),
        ("sd3", 15, 15, 21),
        ("flux", 15, 11, 16),
    ],
)
def test_which_layers_are_adapted(name, default, attention, both):
    counts = []
    for targets in (None, ("attention",), ("attention", "mlp")):
        components = make(name)
        add_lora(components, rank=1, alpha=1, targets=targets)
        counts.append(len(adapted_layers(components)))
    assert counts == [default, attention, both]


def test_presets_and_ends_of_names_add_up():
    components = make("sd1")
    add_lora(components, rank=1, alpha=1, targets=("mlp", "attn2.to_k", "proj_in"))
    ends = ("ff.net.0.proj", "ff.net.2", "attn2.to_k", "proj_in")
    assert len(adapted_layers(components)) == 4 * len(ends)
    assert all(layer.endswith(ends) for layer in adapted_layers(components))


@pytest.mark.parametrize("target", ["to_qq", "attn", "atention", "norm1"])
def test_targets_that_match_nothing_are_named(target):
    with pytest.raises(InputError, match=target) as error:
        add_lora(make("sd1"), rank=4, alpha=4, targets=("to_k", target))
    if target in ("to_qq", "atention"):
        assert f"did you mean '{ {'to_qq': 'to_q', 'atention': 'attention'}[target] }'" in str(
            error.value
        )


def test_text_encoders_are_adapted_on_request(family_name):
    components = make(family_name)
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    clip = {
        "sdxl": ["text_encoder", "text_encoder_2"],
        "sd3": ["text_encoder", "text_encoder_2"],  # not T5
    }.get(family_name, ["text_encoder"])
    assert list(adapted_parts(components)) == [components.family.network_name, *clip]


# ------------------------------------------------------------------ files


def test_files_reproduce_what_was_trained(family_name, tmp_path):
    """Bit for bit: the same numbers go through the same layers. Captions are compared, too."""
    targets = ("attention", "mlp")
    if family_name in ("sd1", "sd2", "sdxl"):
        targets += ("proj_in", "conv1", "time_emb_proj")  # convolutions, names with underscores
    components = trained(family_name, targets=targets, text_encoder=True, dropout=0.5)
    files = save_lora(components, tmp_path)
    names = [DIFFUSERS, KOHYA] if components.family.kohya else [DIFFUSERS]
    assert [file.name for file in files] == names
    components.network.train()
    assert verify_lora(components, files, lambda: make(family_name)) == dict.fromkeys(names, 0.0)
    assert components.network.training


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
def test_dora_goes_to_diffusers_alone(name, tmp_path, caplog):
    components = trained(name, dora=True, text_encoder=True)
    files = save_lora(components, tmp_path)
    assert verify_lora(components, files, lambda: make(name)) == {DIFFUSERS: 0.0}
    assert (KOHYA in caplog.text) == components.family.kohya
    assert not (tmp_path / KOHYA).exists()


@pytest.mark.parametrize("file", [DIFFUSERS, KOHYA])
def test_a_plain_pipeline_draws_what_the_trained_one_draws(file, tmp_path, folders):
    components = trained("sd1", text_encoder=True, dropout=0.5)
    save_lora(components, tmp_path)

    def draw(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            "a cat",
            num_inference_steps=3,
            height=32,
            width=32,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images

    plain = StableDiffusionPipeline.from_pretrained(folders("sd1"))
    before = draw(plain)
    plain.load_lora_weights(tmp_path, weight_name=file)
    assert torch.equal(draw(plain), draw(components.pipeline))
    assert not torch.equal(draw(plain), before)


def test_a_text_encoder_of_another_vocabulary_than_its_file_is_saved_without_embedding(tmp_path):
    components = load_components("demo", offline=True)
    add_lora(components, rank=2, alpha=2, text_encoder=True)
    files = save_lora(components, tmp_path)
    verify_lora(components, files, lambda: load_components("demo", offline=True))


def test_training_goes_on_from_a_file(tmp_path):
    components = trained("sd1", text_encoder=True)
    file = save_lora(components, tmp_path)[0]
    again = make("sd1")
    load_lora(again, file)
    assert all(map(torch.equal, lora_parameters(components), lora_parameters(again)))
    before = hashes(again)
    train(again, lora_parameters(again), steps=1)
    assert all("lora_" in key for key in changed(before, hashes(again)))
    # Saved again it is still an adapter with alpha != rank.
    files = save_lora(again, tmp_path / "again")
    assert set(verify_lora(again, files, lambda: make("sd1")).values()) == {0.0}


def test_metadata_rebuild_the_adapter_and_nothing_else(tmp_path):
    """`lora_dropout` would make diffusers' images random, newer keys stop older versions."""
    file = save_lora(trained("sd1", dropout=0.5), tmp_path)[0]
    with safe_open(file, "pt") as content:
        metadata = json.loads(content.metadata()[LORA_ADAPTER_METADATA_KEY])
    assert metadata == {
        "unet.r": 3,
        "unet.lora_alpha": 6.0,
        "unet.use_dora": False,
        "unet.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
        "unet.rank_pattern": {},
        "unet.alpha_pattern": {},
    }


def test_nothing_is_written_where_there_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_lora(trained("sd1"), tmp_path / "file/out")
    with pytest.raises(InputError, match="cannot write"):
        save_network(make("sd1"), tmp_path / "file/out")


# ------------------------------------------------------------------ kohya's format


@pytest.mark.parametrize(
    "name, text_parts, version, v2",
    [
        ("sd1", {"lora_te": "text_encoder"}, "sd_v1", "False"),
        ("sd2", {"lora_te": "text_encoder"}, "sd_v2_v", "True"),
        (
            "sdxl",
            {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"},
            "sdxl_base_v1-0",
            "False",
        ),
    ],
)
def test_kohya_layers_are_weight_plus_alpha_over_rank_up_down(
    name, text_parts, version, v2, tmp_path
):
    """The formula by which ComfyUI and A1111 merge, and the names by which they find layers."""
    components = trained(name, text_encoder=True, targets=("attention", "mlp", "conv1"))
    save_lora(components, tmp_path)
    tensors = load_file(tmp_path / KOHYA)
    expected = {}
    for prefix, part in {"lora_unet": "unet", **text_parts}.items():
        for path, layer in getattr(components.pipeline, part).named_modules():
            if isinstance(layer, LoraLayer):
                if part != "unet":
                    path = "text_model." + path.removeprefix("text_model.")
                expected[f"{prefix}_{path.replace('.', '_')}"] = layer.get_delta_weight("default")
    assert {key.partition(".")[0] for key in tensors} == set(expected)
    assert len(tensors) == 3 * len(expected)
    for key, delta in expected.items():
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        merged = tensors[f"{key}.alpha"].item() / len(down) * (up.flatten(1) @ down.flatten(1))
        # float32, products of 3 terms
        torch.testing.assert_close(merged, delta.flatten(1), rtol=1e-6, atol=1e-6)
    with safe_open(tmp_path / KOHYA, "pt") as content:
        metadata = content.metadata()
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == v2
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "6.0")


# ------------------------------------------------------------------ files that do not fit


@pytest.fixture
def good(tmp_path):
    """Files of an SD 1 LoRA with text encoder."""
    save_lora(trained("sd1", text_encoder=True), tmp_path)
    return tmp_path


def rewrite(file, change):
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


def drop(part):
    def change(tensors, metadata):
        del tensors[next(key for key in sorted(tensors) if part in key)]

    return change


def add(name):
    return lambda tensors, metadata: tensors.update({name: torch.zeros(3, 8)})


def widen(part):
    def change(tensors, metadata):
        key = next(key for key in sorted(tensors) if part in key)
        tensors[key] = torch.cat([tensors[key]] * 2)

    return change


@pytest.mark.parametrize(
    "change",
    {
        "empty": lambda tensors, metadata: tensors.clear(),
        "a layer is missing": drop("unet.mid_block"),
        "a text layer is missing": drop("text_encoder."),
        "one layer too many": add("unet.mid_block.attentions.7.to_q.lora_A.weight"),
        "a part too many": add("transformer.blocks.0.attn.to_q.lora_A.weight"),
        "other rank": widen("unet.mid_block"),
        "other text rank": widen(
            "text_encoder.text_model.encoder.layers.1.self_attn.k_proj.lora_A"
        ),
        "not a LoRA": add("unet.conv_in.weight"),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_file_with_other_layers_is_refused(good, change):
    rewrite(good / DIFFUSERS, change[1])
    with pytest.raises(InputError, match=DIFFUSERS):
        load_lora(make("sd1"), good / DIFFUSERS)


@pytest.mark.parametrize(
    "change",
    {
        "empty": lambda tensors, metadata: tensors.clear(),
        "no up": drop(".lora_up"),
        "one layer too many": add("lora_unet_mid_block_attentions_7_to_q.lora_down.weight"),
        "a foreign tensor": add("something"),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_kohya_file_with_other_layers_is_refused(good, change):
    rewrite(good / KOHYA, change[1])
    with pytest.raises(InputError, match=KOHYA):
        load_lora(make("sd1"), good / KOHYA)


@pytest.mark.parametrize("other", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("file", [DIFFUSERS, KOHYA])
def test_a_lora_of_another_base_is_refused(good, other, file):
    with pytest.raises(InputError, match=f"does not fit this {other} model") as error:
        load_lora(make(other), good / file)
    assert len(str(error.value)) < 600


def test_damaged_and_pickled_files_are_refused(good):
    whole = (good / DIFFUSERS).read_bytes()
    for content in (b"", whole[:100], whole[:-100]):
        (good / DIFFUSERS).write_bytes(content)
        with pytest.raises(InputError, match="cannot read"):
            load_lora(make("sd1"), good / DIFFUSERS)
    with pytest.raises(InputError, match="cannot read"):
        load_lora(make("sd1"), good / "absent.safetensors")
    torch.save({}, good / "lora.bin")
    with pytest.raises(InputError, match=r"not a \.safetensors"):
        load_lora(make("sd1"), good / "lora.bin")


def scale_alpha(tensors, metadata):
    for key in [key for key in tensors if key.endswith(".alpha")]:
        tensors[key] = torch.tensor(3.0)


def forget_alpha(tensors, metadata):
    del metadata[LORA_ADAPTER_METADATA_KEY]


def turn_one_layer(tensors, metadata):
    key = next(key for key in sorted(tensors) if "lora_B" in key and "text_model" in key)
    tensors[key] = -tensors[key]


@pytest.mark.parametrize(
    "file, change", [(KOHYA, scale_alpha), (DIFFUSERS, forget_alpha), (DIFFUSERS, turn_one_layer)]
)
def test_verification_notices_what_loads_but_is_not_what_was_trained(good, file, change):
    components = trained("sd1", text_encoder=True)
    rewrite(good / file, change)
    with pytest.raises(RuntimeError, match="does not reproduce"):
        verify_lora(components, [good / file], lambda: make("sd1"))


def test_verification_notices_another_base(good):
    components = trained("sd1", text_encoder=True)
    with pytest.raises(RuntimeError, match="is off by"):
        verify_lora(
            components, [good / KOHYA], lambda: Components.of(make_pipeline("sd1", seed=1), "sd1")
        )


def test_verification_works_when_the_encoders_are_gone(tmp_path):
    components = trained("sd1")
    components.unload_encoders()
    files = save_lora(components, tmp_path)
    assert set(verify_lora(components, files, lambda: make("sd1")).values()) == {0.0}
