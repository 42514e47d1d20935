"""Loading a checkpoint: what is read, what is refused, and what the VAE and the encoders answer."""

import hashlib
import json
import os
import pickle
import re
import shutil
import weakref
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from latent_robust.errors import InputError
from latent_robust.latent.base import components
from latent_robust.latent.base.components import load_components
from latent_robust.latent.base.single_file import recognise_layout

from .single_file import original_weights
from .tiny import make_pipeline


@pytest.fixture
def copy_of(folders, tmp_path):
    """(name) -> a folder of one's own with that family's tiny pipeline."""
    return lambda name: shutil.copytree(folders(name), tmp_path / name)


def tree_hash(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr([(str(f), f.read_bytes()) for f in files]).encode()).hexdigest()


def edit_weights(file, change):
    """change: takes the dictionary of tensors and alters it."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def weights_of(folder, part):
    return next((folder / part).glob("*.safetensors"))


def test_a_folder_is_loaded_whole(loaded, pipelines, family_name):
    components, original = loaded(family_name), pipelines(family_name)
    assert components.family.name == family_name
    assert type(components.pipeline) is type(original)
    for name, part in original.components.items():
        if isinstance(part, torch.nn.Module):
            read, weights = getattr(components.pipeline, name), part.state_dict()
            assert not read.training
            assert read.state_dict().keys() == weights.keys()
            assert all(torch.equal(read.state_dict()[key], weights[key]) for key in weights)
    frozen = (components.vae, *components.text_encoders.values())
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert all(p.requires_grad for p in components.network.parameters())


def test_precision_is_the_networks_and_the_encoders_not_the_vaes(folders, loaded, family_name):
    components = load_components(str(folders(family_name)), dtype=torch.bfloat16)
    assert components.network.dtype == torch.bfloat16
    assert {e.dtype for e in components.text_encoders.values()} == {torch.bfloat16}
    exact = loaded(family_name).vae.state_dict()
    assert all(torch.equal(value, exact[key]) for key, value in components.vae.state_dict().items())
    assert all(v.dtype == torch.bfloat16 for v in components.encode_text(["a cat"]).values())


def test_encoders_may_have_another_precision(folders, family_name):
    components = load_components(str(folders(family_name)), text_dtype=torch.bfloat16)
    assert {components.network.dtype, components.vae.dtype} == {torch.float32}
    assert {e.dtype for e in components.text_encoders.values()} == {torch.bfloat16}


def test_the_demo_model_is_cast_like_any_other(monkeypatch):
    place = "latent_robust.latent.base.demo_model.load_demo_pipeline"
    monkeypatch.setattr(place, lambda: make_pipeline("sd1"))
    components = load_components("demo", dtype=torch.bfloat16)
    assert (components.network.dtype, components.vae.dtype) == (torch.bfloat16, torch.float32)


def test_moments_are_the_vaes_scaled(loaded, family_name):
    components = loaded(family_name)
    samples = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples.requires_grad_()
    mean, std = components.encode_images(samples)
    assert mean.shape == std.shape == (2, 4, 12, 16)
    posterior, config = components.vae.encode(samples).latent_dist, components.vae.config
    # latents that the pipeline would decode to a draw from the posterior
    draw = posterior.mean + 2 * posterior.std
    unscaled = (mean + 2 * std) / config.scaling_factor + (config.shift_factor or 0.0)
    torch.testing.assert_close(unscaled, draw, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(mean.sum(), samples)[0].ne(0).any()


def test_decoding_is_the_pipelines(loaded, family_name):
    components = loaded(family_name)

    def sampled(output_type):
        return components.pipeline(
            "a cat",
            height=24,
            width=32,
            num_inference_steps=1,
            output_type=output_type,
            generator=torch.Generator().manual_seed(0),
        ).images

    latents = sampled("latent")
    if family_name == "flux":
        latents = components.pipeline._unpack_latents(latents, 24, 32, vae_scale_factor=2)
    with torch.no_grad():
        ours = components.decode_latents(latents)
    # Theirs comes in [0, 1], clipped; dividing by a scale or multiplying by it differs in a bit.
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), sampled("pt"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, network", [("sd1", "unet"), ("sd3", "transformer")])
def test_identity_is_of_the_encoders_alone(copy_of, loaded, name, network):
    identity = loaded(name).identity
    folder = copy_of(name)
    edit_weights(weights_of(folder, network), lambda w: next(iter(w.values())).add_(1))
    assert load_components(str(folder)).identity == identity

    seen = {identity, load_components(str(folder), dtype=torch.bfloat16).identity}
    for part in ("vae", "text_encoder"):
        edit_weights(weights_of(folder, part), lambda w: next(iter(w.values())).add_(1))
        seen.add(load_components(str(folder)).identity)
    assert len(seen) == 4


def test_identity_knows_the_configuration_and_the_vocabulary(copy_of, loaded):
    folder = copy_of("sd1")
    seen = {loaded("sd1").identity}
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    seen.add(load_components(str(folder)).identity)
    make_pipeline("sd2").tokenizer.save_pretrained(folder / "tokenizer")
    seen.add(load_components(str(folder)).identity)
    assert len(seen) == 3


def test_unloading_frees_the_encoders_and_says_so_afterwards(folders, family_name):
    components = load_components(str(folders(family_name)))
    noise_scheduler = components.process
    parts = (components.vae, *components.text_encoders.values())
    gone = [weakref.ref(part) for part in parts]
    del parts
    components.unload_encoders()
    assert [part() for part in gone] == [None] * len(gone)
    assert components.text_encoders == {}
    for call in (
        lambda: components.encode_text(["a cat"]),
        components.empty_text,
        lambda: components.encode_images(torch.zeros(1, 3, 8, 8)),
        lambda: components.decode_latents(torch.zeros(1, 4, 4, 4)),
    ):
        with pytest.raises(RuntimeError, match="unloaded"):
            call()
    components.unload_encoders()
    assert components.network is not None
    assert components.process is noise_scheduler
    assert components.cut_captions(["a" * 600]) == [0]


def test_the_vae_may_be_kept(folders):
    components = load_components(str(folders("sd1")))
    components.unload_encoders(keep_vae=True)
    assert components.text_encoders == {}
    assert components.decode_latents(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8)


def test_nothing_but_ours_is_said(folders, family_name, capfd):
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    components = load_components(str(folders(family_name)))
    components.encode_text(["far too long " * 100])
    components.cut_captions(["far too long " * 100])
    assert capfd.readouterr() == ("", "")
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs] == before


def drop(key):
    return lambda weights: weights.pop(key)


def to_nan(weights):
    weights["conv_in.bias"][0] = float("nan")


def as_pickle(folder):
    file = weights_of(folder, "unet")
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def set_index(folder, **entries):
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def set_unet(folder, **entries):
    file = folder / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def truncate(folder):
    file = weights_of(folder, "vae")
    file.write_bytes(file.read_bytes()[:-1000])


DAMAGES = {
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        r"no model_index\.json.*save_pretrained",
    ),
    "index is not JSON": (
        lambda f: (f / "model_index.json").write_text("{"),
        r"cannot read .*model_index\.json",
    ),
    "index without a class": (
        lambda f: (f / "model_index.json").write_text("{}"),
        "known family",
    ),
    "unknown family": (
        lambda f: set_index(f, _class_name="WuerstchenPipeline"),
        "WuerstchenPipeline.*known family",
    ),
    "code of its own": (
        lambda f: set_index(f, unet=["my_unet", "MyUNet"]),
        r"my_unet\.MyUNet.*is not run",
    ),
    "not an AutoencoderKL": (
        lambda f: set_index(f, vae=["diffusers", "AutoencoderTiny"]),
        "vae",
    ),
    "missing weight of the network": (
        lambda f: edit_weights(weights_of(f, "unet"), drop("conv_in.bias")),
        r"unet lacks 1 of its weights.*conv_in\.bias",
    ),
    "missing weight of the VAE": (
        lambda f: edit_weights(weights_of(f, "vae"), drop("decoder.conv_in.bias")),
        r"vae lacks 1 of its weights.*decoder\.conv_in\.bias",
    ),
    "missing weight of the text encoder": (
        lambda f: edit_weights(weights_of(f, "text_encoder"), lambda w: w.pop(min(w))),
        r"text_encoder lacks 1 of its weights",
    ),
    "NaN": (
        lambda f: edit_weights(weights_of(f, "unet"), to_nan),
        r"unet of .* NaN or infinite weights in conv_in\.bias",
    ),
    "weights of another size": (
        lambda f: set_unet(f, block_out_channels=[4, 16]),
        "cannot load .*unet",
    ),
    "inpainting": (
        lambda f: (
            set_unet(f, in_channels=9),
            edit_weights(
                weights_of(f, "unet"),
                lambda w: w.update({"conv_in.weight": torch.zeros(8, 9, 3, 3)}),
            ),
        ),
        "takes 9 channels.*base model",
    ),
    "truncated": (truncate, "cannot load .*vae.*again"),
    "pickled weights": (as_pickle, r"unet holds its weights in a pickle.*save_pretrained"),
    "no weights": (lambda f: weights_of(f, "unet").unlink(), r"unet holds no weights"),
    "no such part": (lambda f: shutil.rmtree(f / "unet"), r"unet is missing"),
    "no tokenizer": (
        lambda f: shutil.rmtree(f / "tokenizer"),
        "tokenizer of .* has 2 tokens, its text encoder 514",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_and_left_alone(copy_of, damage, capfd):
    folder = copy_of("sd1")
    change, message = DAMAGES[damage]
    change(folder)
    before = tree_hash(folder)
    with pytest.raises(InputError, match=message):
        load_components(str(folder))
    assert tree_hash(folder) == before
    assert capfd.readouterr() == ("", "")


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_pickles_are_never_opened(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    remedy = "not a safetensors file" if suffix == ".safetensors" else "pickle.*convert it once"
    with pytest.raises(InputError, match=remedy):
        load_components(str(file))
    assert not (tmp_path / "canary").exists()


def run_the_remedy(error):
    """The python command that the message gives."""
    exec(re.search(r'python -c "(.*)"', str(error.value)).group(1), {})


def test_the_remedy_for_a_pickled_part_works(copy_of, loaded, tmp_path, monkeypatch):
    folder = copy_of("sd1")
    as_pickle(folder)
    with pytest.raises(InputError) as error:
        load_components(str(folder))
    monkeypatch.chdir(tmp_path)
    run_the_remedy(error)
    assert load_components("NEW").identity == loaded("sd1").identity


def test_the_remedy_for_a_pickled_file_works(copy_of, monkeypatch):
    folder, other = copy_of("sd1"), make_pipeline("sd1", seed=1)
    torch.save({"state_dict": original_weights(other, "unet")}, folder / "old.ckpt")
    with pytest.raises(InputError) as error:
        load_components(str(folder / "old.ckpt"))
    monkeypatch.chdir(folder)
    run_the_remedy(error)
    components = load_components("old.safetensors")
    assert torch.equal(components.network.conv_in.weight, other.unet.conv_in.weight)


@pytest.mark.parametrize("model", ["./nothing/here", "/no/such/place", "model.safetensors", "a b"])
def test_a_wrong_path_is_not_looked_for_on_the_hub(model):
    with pytest.raises(InputError, match=f"{model} does not exist.*diffusers folder"):
        load_components(model)


def test_a_model_that_is_not_downloaded_is_named_with_the_remedy():
    with pytest.raises(InputError, match="hf download nobody/nothing"):
        load_components("nobody/nothing", offline=True)


@pytest.fixture
def downloaded(folders, tmp_path, monkeypatch):
    """(family, name) -> puts the tiny pipeline into an otherwise empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(family, name):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("0" * 40)
        return shutil.copytree(folders(family), place / "snapshots" / ("0" * 40))

    return put


@pytest.mark.parametrize("offline", [True, False])
def test_a_downloaded_model_is_loaded_without_a_connection(downloaded, loaded, offline, capfd):
    downloaded("sd3", "somebody/something")
    identity = loaded("sd3").identity
    capfd.readouterr()  # what making them says, where this is the first test to want them
    components = load_components("somebody/something", offline=offline)
    assert components.family.name == "sd3"
    assert components.identity == identity
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_half_precision_files_only(copy_of, loaded):
    folder = copy_of("sdxl")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    components = load_components(str(folder))
    assert components.identity == loaded("sdxl").identity


SINGLE_FILES = {
    "a LoRA": ({"lora_unet_mid_block.lora_down.weight": (4, 8)}, "is a LoRA"),
    "something else": ({"layers.0.weight": (4, 8)}, "known family"),
    "an inpainting model": (
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)},
        "known family.*inpainting",
    ),
    "SD 1.x": (
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
        r"next to its model_index\.json.*hf download stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "FLUX.1": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
        r"hf download black-forest-labs/FLUX\.1-schnell",
    ),
}


# Names and shapes of the weights that tell real files apart (the prefix is the U-Nets').
NET = "model.diffusion_model."
XL = "conditioner.embedders.{}.model.transformer.resblocks.9.mlp.c_proj.bias"
KEY_WIDTH = f"{NET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
ADA = f"{NET}joint_blocks.0.context_block.adaLN_modulation.1.bias"
FLUX = "double_blocks.0.img_attn.norm.key_norm.scale"
GUIDANCE = "guidance_in.in_layer.bias"
LAYOUTS = {
    "v1": {f"{NET}input_blocks.0.0.weight": (320, 4, 3, 3), KEY_WIDTH: (320, 768)},
    "v2": {f"{NET}input_blocks.0.0.weight": (320, 4, 3, 3), KEY_WIDTH: (320, 1024)},
    "xl_base": {f"{NET}input_blocks.0.0.weight": (320, 4, 3, 3), XL.format(1): (1280,)},
    "sd3": {ADA: (9216,), f"{NET}pos_embed": (1, 36864, 1536)},
    "sd35_medium": {ADA: (9216,), f"{NET}pos_embed": (1, 147456, 1536)},
    "sd35_large": {ADA: (14592,), f"{NET}joint_blocks.37.x_block.mlp.fc1.weight": (9728, 2432)},
    "flux-schnell": {FLUX: (128,), "img_in.weight": (3072, 64)},
    "flux-dev": {FLUX: (128,), "img_in.weight": (3072, 64), GUIDANCE: (3072,)},
    # refused
    "v1 inpainting": {f"{NET}input_blocks.0.0.weight": (320, 9, 3, 3), KEY_WIDTH: (320, 768)},
    "v2 inpainting": {f"{NET}input_blocks.0.0.weight": (320, 9, 3, 3), KEY_WIDTH: (320, 1024)},
    "v1 editing": {f"{NET}input_blocks.0.0.weight": (320, 8, 3, 3), KEY_WIDTH: (320, 768)},
    "xl refiner": {f"{NET}input_blocks.0.0.weight": (384, 4, 3, 3), XL.format(0): (1280,)},
    "flux fill": {FLUX: (128,), "img_in.weight": (3072, 384), GUIDANCE: (3072,)},
    "flux depth": {FLUX: (128,), "img_in.weight": (3072, 128), GUIDANCE: (3072,)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_told_apart_by_names_and_shapes(layout):
    shapes = {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[layout].items()}
    if " " in layout:
        with pytest.raises(InputError, match="known family"):
            recognise_layout(shapes, Path("it.safetensors"))
    else:
        assert recognise_layout(shapes, Path("it.safetensors")) == layout


@pytest.mark.parametrize("kind", SINGLE_FILES)
def test_a_lone_file_offline_says_what_it_needs(tmp_path, kind):
    shapes, message = SINGLE_FILES[kind]
    file = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, file)
    with pytest.raises(InputError, match=message):
        load_components(str(file), offline=True)


@pytest.mark.parametrize("holds", [("unet",), ("unet", "vae", "text_encoder")], ids="-".join)
def test_a_single_file_is_loaded_with_the_folder_around_it(copy_of, loaded, holds, capfd):
    folder, other = copy_of("sd1"), make_pipeline("sd1", seed=1)
    save_file(original_weights(other, *holds), folder / "one.safetensors")
    capfd.readouterr()  # saving the folder shows its progress
    components = load_components(str(folder / "one.safetensors"), dtype=torch.float16)
    assert capfd.readouterr() == ("", "")
    for name in ("unet", "vae", "text_encoder"):
        read = getattr(components.pipeline, name).state_dict()
        weights = getattr(other if name in holds else loaded("sd1").pipeline, name).state_dict()
        dtype = torch.float32 if name == "vae" else torch.float16
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[key], value.to(dtype)) for key, value in weights.items())


def test_a_lone_single_file_takes_the_rest_from_the_hub(downloaded, loaded, tmp_path):
    downloaded("sd1", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    other = make_pipeline("sd1", seed=1)
    save_file(original_weights(other, "unet"), tmp_path / "one.safetensors")
    components = load_components(str(tmp_path / "one.safetensors"), offline=True)
    assert components.identity == loaded("sd1").identity
    assert torch.equal(components.network.conv_in.weight, other.unet.conv_in.weight)


def test_a_single_file_that_lacks_weights_is_refused(copy_of):
    folder = copy_of("sd1")
    weights = original_weights(make_pipeline("sd1"), "unet")
    weights.pop("model.diffusion_model.time_embed.2.bias")
    save_file(weights, folder / "one.safetensors")
    with pytest.raises(InputError, match=r"one\.safetensors lacks weights that a v1 model has"):
        load_components(str(folder / "one.safetensors"))


@pytest.mark.parametrize("said", ["metadata", "empty weight"])
def test_a_single_file_may_say_what_it_predicts(copy_of, said):
    folder = copy_of("sd1")
    weights = original_weights(make_pipeline("sd1"), "unet")
    metadata = {"modelspec.prediction_type": "v"} if said == "metadata" else None
    if said == "empty weight":
        weights |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(weights, folder / "one.safetensors", metadata=metadata)
    components = load_components(str(folder / "one.safetensors"))
    assert components.process.parameterization == "v_prediction"


def test_many_captions_are_encoded_in_parts(loaded, monkeypatch):
    captions = ["a", "b", "c"]
    whole = loaded("sdxl").encode_text(captions)
    monkeypatch.setattr(components, "TEXT_BATCH", 2)
    torch.testing.assert_close(loaded("sdxl").encode_text(captions), whole)
