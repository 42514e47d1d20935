import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_robust.errors import InputError
from latent_robust.evaluation.clip_score import ClipScore, load_clip_score
from latent_robust.evaluation.features import Extractor

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
CAPTIONS = ["a red circle", "a blue square", "nothing", "a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random CLIP of the real vocabulary."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**MODEL).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def clip_score(folder):
    return load_clip_score(f"local-dir:{folder}")


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_score_is_the_mean_cosine_of_the_embeddings(folder, clip_score, images):
    network = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    mean, std = (
        torch.tensor(c).reshape(1, 3, 1, 1)
        for c in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        seen = network.encode_image(((images + 1) / 2 - mean) / std, normalize=True)
        said = network.encode_text(open_clip.tokenize(CAPTIONS, 8), normalize=True)
    cosine = (seen * said).sum(1)
    assert clip_score.name == "open_clip tiny"
    # Normalized before or after the product: another order of rounding.
    assert clip_score(images, CAPTIONS) == pytest.approx(
        {
            "clip_score": 100 * cosine.clamp(min=0).mean().item(),
            "clip_cosine": cosine.mean().item(),
        },
        abs=1e-5,
    )


def fixed(cosines):
    """A ClipScore whose images have these cosines with any caption."""
    cosines = torch.tensor(cosines)
    directions = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
    return ClipScore(
        "fixed",
        Extractor("fixed", lambda x: directions, clamp=False),
        lambda captions: torch.tensor([[3.0, 0.0]]).expand(len(captions), -1),
    )


@pytest.mark.parametrize(
    ("cosines", "score", "cosine"),
    [([1.0, 1.0], 100, 1), ([0.25, -0.75], 12.5, -0.25), ([-1.0, -1.0], 0, -1)],
)
def test_each_negative_cosine_counts_as_zero(cosines, score, cosine):
    result = fixed(cosines)(torch.zeros(2, 3, 4, 4), ["a", "b"])
    # float32 square roots
    assert result == pytest.approx({"clip_score": score, "clip_cosine": cosine}, abs=1e-5)


def test_score_belongs_to_pairs_whatever_their_order(clip_score, images):
    order = [2, 0, 3, 1]
    shuffled = clip_score(images[order], [CAPTIONS[i] for i in order])
    # Sums in another order.
    assert shuffled == pytest.approx(clip_score(images, CAPTIONS), abs=1e-5)
    wrong = clip_score(images, [CAPTIONS[i] for i in order])
    assert wrong != pytest.approx(clip_score(images, CAPTIONS), abs=1e-3)


def test_images_of_any_size_and_colour_are_taken(clip_score):
    assert set(clip_score(torch.zeros(1, 1, 40, 24), ["x"])) == {"clip_score", "clip_cosine"}


def test_as_many_captions_as_images(clip_score, images):
    with pytest.raises(InputError, match="4 images cannot have 1 captions"):
        clip_score(images, ["one"])


def test_a_file_with_the_name_of_its_model(folder, tmp_path, images, clip_score):
    (tmp_path / "tiny-for-test.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "tiny-for-test.json")
    named = load_clip_score(f"tiny-for-test:{folder / 'open_clip_model.safetensors'}")
    assert named.name == "open_clip tiny-for-test"
    assert named(images, CAPTIONS) == clip_score(images, CAPTIONS)


def test_missing_weights_are_refused_with_a_remedy(tmp_path, folder):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    pickle = tmp_path / "weights.pt"
    torch.save(load_file(folder / "open_clip_model.safetensors"), pickle)
    pickle.rename(tmp_path / "open_clip_pytorch_model.bin")
    for spec in (
        "ViT-B-32",
        "ViT-B-32:",
        "ViT-B-32:/nowhere.safetensors",
        f"ViT-B-32:{tmp_path / 'open_clip_pytorch_model.bin'}",
        f"local-dir:{tmp_path}",
        "local-dir:/nowhere",
    ):
        with pytest.raises(InputError, match=r"no open_clip weights .* give NAME:FILE"):
            load_clip_score(spec)


def test_weights_of_another_model_are_refused(folder, tmp_path):
    weights = load_file(folder / "open_clip_model.safetensors")
    config = json.dumps({"model_cfg": MODEL})
    (tmp_path / "open_clip_config.json").write_text(config)
    save_file({"positional_embedding": weights["positional_embedding"]},
              tmp_path / "open_clip_model.safetensors")  # fmt: skip
    with pytest.raises(InputError, match="cannot load open_clip model"):
        load_clip_score(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot load open_clip model"):
        load_clip_score(f"local-dir:{tmp_path}")


def test_a_tokenizer_that_is_not_there_is_named(folder, tmp_path):
    model = MODEL | {"text_cfg": MODEL["text_cfg"] | {"hf_tokenizer_name": "somebody/tokenizer"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="tokenizer of open_clip model"):
        load_clip_score(f"local-dir:{tmp_path}")
