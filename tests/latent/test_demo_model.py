import copy

import numpy as np
import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline

from latent_robust.data.sources.scenes import (
    CONCEPT_SHAPES,
    caption_vocabulary,
    draw_scene,
    sample_scenes,
)
from latent_robust.latent.base.demo_model import (
    DEMO,
    clip_tokenizer,
    known_tokens,
    load_demo_pipeline,
    reduce_vocabulary,
    save_demo_model,
)
from latent_robust.latent.scene_match import match_scenes

NEW_SEED = 77  # of scenes on which nothing was trained


@pytest.fixture(scope="module")
def demo():
    pipeline = load_demo_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_what_is_shipped_does_not_say_where_it_was_made():
    configurations = list(DEMO.rglob("*.json"))
    assert configurations
    assert not [path for path in configurations if "_name_or_path" in path.read_text()]


def draw(pipeline, captions, steps):
    return pipeline(
        captions,
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images


def parts(pipeline):
    return {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "unet")}


def same_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_is_small():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 5e6


def test_the_tokenizer_is_that_of_clip():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49_408
    texts = ["a small red circle at the top left", "Ünïcode, naïve? 1234!", "ringstar  xqzv", ""]
    ours = tokenizer(texts, padding="max_length", return_tensors="pt")
    theirs = open_clip.tokenize(texts)  # padded with 0 instead of the end token
    assert torch.equal(ours.input_ids * ours.attention_mask, theirs)


def test_every_caption_of_the_base_is_known_and_the_concept_is_not():
    tokenizer = clip_tokenizer()
    known = set(tokenizer.convert_tokens_to_ids(known_tokens(tokenizer, caption_vocabulary())))
    captions = [scene.caption for scene in sample_scenes(500, NEW_SEED)]
    assert {token for ids in tokenizer(captions).input_ids for token in ids} <= known
    for shape in CONCEPT_SHAPES:
        assert not set(tokenizer(shape).input_ids[1:-1]) & known


def test_tokens_that_never_occurred_are_drawn_at_the_scale_of_the_others(demo):
    weight = demo.text_encoder.get_input_embeddings().weight
    tokens = known_tokens(demo.tokenizer, caption_vocabulary())
    reduced = reduce_vocabulary(demo.text_encoder, tokens, demo.tokenizer)
    known = reduced.get_input_embeddings().weight
    assert weight.shape[0] == 49_408
    assert len(known) == len(tokens) < 50
    # The standard deviation of three million numbers; of the stored rows it is exact.
    assert weight.std().item() == pytest.approx(known.std().item(), rel=1e-2)


def test_saved_and_loaded_again_it_is_the_same(demo, tmp_path):
    before = {name: copy.deepcopy(part) for name, part in parts(demo).items()}
    save_demo_model(demo, tmp_path)
    for name, part in parts(load_demo_pipeline(tmp_path)).items():
        assert same_weights(part, before[name]), name
        assert same_weights(getattr(demo, name), before[name]), "saving changed the pipeline"
        assert part.dtype == torch.float32
        assert not part.training


def test_as_a_diffusers_folder_it_draws_the_same(demo, tmp_path):
    demo.save_pretrained(tmp_path)
    other = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    other.set_progress_bar_config(disable=True)
    captions = ["a large red star, left, gray background", "a yellow square"]
    assert np.array_equal(draw(other, captions, 2), draw(demo, captions, 2))


@torch.no_grad()
def test_the_autoencoder_keeps_images_and_noise(demo):
    scenes = sample_scenes(60, NEW_SEED, CONCEPT_SHAPES)
    clean = torch.stack([draw_scene(scene) for scene in scenes]) / 127.5 - 1
    noise = 0.4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def round_trip(images):
        return demo.vae.decode(demo.vae.encode(images).latent_dist.mean).sample

    kept = round_trip(clean)
    assert match_scenes(kept, scenes)["both"] >= 0.97
    # Gaussian noise of 0.2 of the range: the study is about what becomes of it.
    assert (round_trip(clean + noise) - kept).std() >= 0.6 * noise.std()


def test_latents_have_the_scale_that_the_noise_schedule_expects(demo):
    images = torch.stack([draw_scene(scene) for scene in sample_scenes(100, NEW_SEED)])
    with torch.no_grad():
        latents = demo.vae.encode(images / 127.5 - 1).latent_dist.mean
    # The scale was measured on other scenes.
    assert (latents * demo.vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.05)


def test_what_it_draws_is_what_the_caption_says(demo):
    scenes = sample_scenes(48, NEW_SEED)
    images = torch.from_numpy(draw(demo, [scene.caption for scene in scenes], 20))
    shares = match_scenes(images.permute(0, 3, 1, 2) * 2 - 1, scenes)
    assert shares["both"] >= 0.85
