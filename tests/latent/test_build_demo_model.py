"""scripts/build_demo_model.py --pairs, from an autoencoder that is there already."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from latent_robust.latent.base.components import load_components
from latent_robust.latent.base.demo_model import load_demo_pipeline

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a hedgehog", "tropical fish, fish", "ladybug, lady beetle"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory, images):
    """A folder: ten steps on three pairs."""
    root = tmp_path_factory.mktemp("base")
    pairs = root / "pairs"
    pairs.mkdir()
    names = [f"{index}.png" for index in range(len(CAPTIONS))]
    for name, image in zip(names, images, strict=True):
        save_image(image, pairs / name)
    rows = [json.dumps({"file_name": n, "text": c}) for n, c in zip(names, CAPTIONS, strict=True)]
    (pairs / "metadata.jsonl").write_text("\n".join(rows))
    load_demo_pipeline().vae.save_pretrained(root / "work" / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        script = importlib.import_module("build_demo_model")
        drawn = torch.zeros(len(CAPTIONS), 3, 32, 32)  # ten times sampling would be slow
        patch.setattr(script, "draw", lambda pipeline, captions: drawn)
        script.build_from_pairs(str(pairs), root / "work", root / "out", steps=10)
    return root / "out"


@torch.no_grad()
def test_it_loads_as_any_model_and_its_latents_are_standardized(base, images):
    components = load_components(str(base))
    assert components.family.name == "sd1"
    stored = (images * 255 + 0.5).to(torch.uint8)  # as save_image rounds
    means = components.vae.encode(stored / 127.5 - 1).latent_dist.mean
    std, mean = torch.std_mean(means, (0, 2, 3))
    # Of the very images that the scale was measured on; float32.
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)


@torch.no_grad()
def test_another_scale_of_the_latents_is_the_same_autoencoder(base, images):
    def round_trip(vae):
        return vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample

    ours, shipped = load_components(str(base)).vae, load_demo_pipeline().vae
    # The scale goes in and out again in float32.
    torch.testing.assert_close(round_trip(ours), round_trip(shipped), atol=1e-4, rtol=0)


def test_its_text_encoder_knows_all_of_the_tokenizers_words(base):
    pipeline = load_components(str(base)).pipeline
    embeddings = pipeline.text_encoder.get_input_embeddings().weight
    assert len(embeddings) == len(pipeline.tokenizer) == 49_408
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id
