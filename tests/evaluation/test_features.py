import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from latent_robust.data.sources.scenes import (
    BASE_SHAPES,
    COLORS,
    CONCEPT_SHAPES,
    draw_scene,
    sample_scenes,
)
from latent_robust.errors import InputError
from latent_robust.evaluation.feature_network import (
    ASSETS,
    FeatureNetwork,
    load_network,
    save_network,
    split,
)
from latent_robust.evaluation.features import make_extractor, metric_name
from latent_robust.evaluation.metrics import frechet_distance


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images).float()[:, None] / 8 - 1, torch.tensor(data.target)


def test_pixels_are_the_raw_values():
    images = 3 * torch.randn(5, 2, 4, 4)
    assert torch.equal(make_extractor("pixels")(images), images.flatten(1))


def test_shipped_digit_network_reaches_its_recorded_accuracy(digits):
    network, description = load_network(ASSETS / "digits.safetensors")
    images, labels = digits
    _, held_out = split(len(images), description["seed"])
    correct = network(images[held_out]).argmax(1) == labels[held_out]
    # One of 359 images may fall the other way on another machine's arithmetic.
    assert correct.double().mean() >= description["accuracy"] - 1.5 / 359
    assert description["accuracy"] > 0.98


def test_shipped_scene_network_knows_shapes_and_colours():
    network, description = load_network(ASSETS / "scenes.safetensors")
    shapes, colors = BASE_SHAPES + CONCEPT_SHAPES, list(COLORS)
    scenes = sample_scenes(300, seed=3, shapes=shapes)
    images = torch.stack([draw_scene(scene) for scene in scenes]) / 127.5 - 1
    for scene, label in zip(scenes, network(images).argmax(1).tolist(), strict=True):
        shape, color = divmod(label, len(colors))
        assert (shapes[shape], colors[color]) == (scene.shape, scene.color)
    assert description["accuracy"] > 0.99


def test_shipped_cifar_network_was_trained_well():
    network, description = load_network(ASSETS / "cifar10.safetensors")
    assert (network.size, network.channels, description["body"]) == (32, 3, "residual")
    assert description["accuracy"] > 0.8


def test_digit_features_see_noise(digits):
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images = digits[0][order]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    extractor = make_extractor("digits")
    reference = extractor(images[900:])
    distances = [
        frechet_distance(extractor(images[:900] + sigma * noise[:900]), reference)
        for sigma in (0, 0.1, 0.2, 0.4)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[0]  # measured: 4


def test_networks_look_at_what_a_person_sees(digits):
    images = 2 * digits[0][:10]
    extractor = make_extractor("digits")
    assert torch.equal(extractor(images), extractor(images.clamp(-1, 1)))


def test_features_do_not_depend_on_the_batch(digits):
    extractor = make_extractor("digits")
    together = extractor(digits[0][:200])
    # Convolutions of other batch sizes may sum in another order.
    torch.testing.assert_close(together[150:], extractor(digits[0][150:200]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["digits", "fashion-mnist", "scenes", "cifar10"])
def test_gray_colour_and_size_are_fitted_to_the_network(spec):
    gray = torch.rand(4, 1, 28, 28) * 2 - 1
    extractor = make_extractor(spec)
    assert extractor(gray).shape == (4, 128 if spec == "cifar10" else 64)
    # Luma weights sum to 0.9999 in torchvision.
    torch.testing.assert_close(
        extractor(gray), extractor(gray.expand(-1, 3, -1, -1)), rtol=1e-2, atol=1e-2
    )


def test_only_inception_is_called_fid():
    assert metric_name("inception") == "FID"
    assert metric_name("inception", "kernel") == "KID"
    assert make_extractor("pixels").metric_name == "FD (pixels)"
    assert make_extractor("digits").metric_name == "FD (digit network)"


def test_a_file_called_inception_is_not_inception(tmp_path):
    save_network(
        FeatureNetwork(2, 8, 1), tmp_path / "inception.safetensors", data="x", accuracy=0.5, seed=0
    )
    extractor = make_extractor(str(tmp_path / "inception.safetensors"))
    assert extractor.metric_name == "FD (inception network)"


@pytest.mark.parametrize("body", ["small", "residual"])
def test_equal_networks_are_equal_files(tmp_path, body):
    network = FeatureNetwork(3, 16, 3, body).eval()
    if body == "residual":  # it is stored in 16 bits
        network.load_state_dict({k: v.half() for k, v in network.state_dict().items()})
    for name in "ab":
        save_network(network, tmp_path / name, data="x", accuracy=0.5, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again, description = load_network(tmp_path / "a")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(images), network(images))
    assert description == {
        "classes": 3, "size": 16, "channels": 3, "body": body,
        "data": "x", "accuracy": 0.5, "seed": 1,
    }  # fmt: skip


def test_inception_weights_that_were_downloaded_serve_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = URL_INCEPTION_V3.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / name)
    with pytest.raises(InputError, match=f"{name} does not hold Inception weights"):
        make_extractor("inception", offline=True)


def test_offline_inception_without_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="give its path as `weights`"):
        make_extractor("inception", offline=True)


@pytest.mark.parametrize("offline", [True, False])
def test_missing_inception_weights_are_refused_and_not_downloaded(tmp_path, offline):
    with pytest.raises(InputError, match="no Inception weights"):
        make_extractor("inception", weights=tmp_path / "weights.pth", offline=offline)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_inception_weights_is_not_run(tmp_path):
    torch.save({"weight": Canary(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="cannot read"):
        make_extractor("inception", weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_other_weights_are_not_taken_for_inception(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="does not hold Inception weights"):
        make_extractor("inception", weights=tmp_path / "weights.pth")


def test_dinov2_from_a_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    extractor = make_extractor(f"dinov2:{tmp_path}")
    assert extractor(torch.zeros(2, 1, 8, 8)).shape == (2, 16)
    assert extractor.metric_name == "FD (DINOv2)"


def test_dinov2_with_missing_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layernorm\.weight"):
        make_extractor(f"dinov2:{tmp_path}")


def test_open_clip_from_a_folder(tmp_path):
    import json

    import open_clip
    from safetensors.torch import save_file

    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1,
        },
    }  # fmt: skip
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    network = open_clip.CLIP(**model)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    extractor = make_extractor(f"open_clip:local-dir:{folder}")
    assert extractor.metric_name == "FD (open_clip tiny)"
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    mean, std = (
        torch.tensor(c).reshape(1, 3, 1, 1)
        for c in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        expected = network.eval().encode_image(((images + 1) / 2 - mean) / std)
    assert torch.equal(extractor(images), expected)


@pytest.mark.parametrize(
    "spec", ["resnet", "dinov2:", "dinov2:/nowhere", "open_clip:ViT-B-32:/nowhere.safetensors",
             "open_clip:ViT-B-32", "/nowhere.safetensors"]
)  # fmt: skip
def test_features_that_are_not_there_are_refused(spec):
    with pytest.raises(InputError):
        make_extractor(spec)


def test_a_damaged_or_foreign_network_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    whole = (ASSETS / "digits.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:1000])
    for name, message in (("foreign", "not a feature network"), ("cut", "not a readable")):
        with pytest.raises(InputError, match=message):
            make_extractor(str(tmp_path / f"{name}.safetensors"))


def test_diverged_images_are_named():
    images = torch.zeros(4, 1, 8, 8)
    images[2, 0, 1, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 4 images"):
        make_extractor("pixels")(images)
