import pickle

import pytest
import torch

from latent_robust.data import open_images, open_pairs
from latent_robust.data.sources.scene_sources import IMAGES_SEED, PAIRS_SEED
from latent_robust.data.sources.scenes import (
    BACKGROUNDS,
    BASE_SHAPES,
    COLORS,
    CONCEPT_SHAPES,
    POSITIONS,
    SIDE,
    SIZES,
    TINT,
    caption_vocabulary,
    draw_scene,
    sample_scene,
    sample_scenes,
    shape_coverage,
)
from latent_robust.errors import InputError

MIDDLE = (SIDE / 2, SIDE / 2)


def test_a_scene_is_a_function_of_seed_and_index():
    scenes = sample_scenes(20, seed=3)
    assert sample_scenes(5, seed=3) == scenes[:5]
    assert sample_scene(7, seed=3) == scenes[7]
    assert sample_scenes(20, seed=4) != scenes
    assert torch.equal(draw_scene(scenes[7]), draw_scene(sample_scene(7, seed=3)))


def test_all_words_are_equally_frequent():
    scenes = sample_scenes(3_000, seed=0)
    for attribute, values in (
        ("shape", BASE_SHAPES), ("color", COLORS), ("position", POSITIONS), ("size", SIZES),
        ("background", BACKGROUNDS),
    ):  # fmt: skip
        counts = [sum(getattr(scene, attribute) == value for scene in scenes) for value in values]
        assert sum(counts) == len(scenes)
        expected = len(scenes) / len(values)
        # Five standard deviations of the binomial distribution.
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts), attribute


def test_base_scenes_have_no_concept_shape():
    assert not set(BASE_SHAPES) & set(CONCEPT_SHAPES)
    assert {scene.shape for scene in sample_scenes(200, 0)} == set(BASE_SHAPES)
    assert not set(caption_vocabulary()) & set(CONCEPT_SHAPES)


def test_captions_are_true_and_made_of_the_vocabulary():
    words = set(caption_vocabulary()) | set(CONCEPT_SHAPES)
    scenes = sample_scenes(500, 1, BASE_SHAPES + CONCEPT_SHAPES)
    for scene in scenes:
        assert set(scene.caption.replace(",", " , ").split()) <= words
        for word in (scene.shape, scene.color, scene.background):
            assert word in scene.caption
        assert "a orange" not in scene.caption
    assert len({scene.caption for scene in scenes}) > 400


@pytest.mark.parametrize(
    "shape, area",
    [
        ("square", 1.6**2),
        ("triangle", 1.9 * 1.8 / 2),
        ("diamond", 1.4 * 2 / 2),
        ("cross", 4 * 0.6 - 0.6**2),
        ("circle", torch.pi * 0.9**2),
        ("ring", torch.pi * (0.95**2 - 0.5**2)),
        ("star", 10 * 0.42 * torch.sin(torch.tensor(torch.pi / 5)).item() / 2),
    ],
)
def test_areas_of_the_shapes(shape, area):
    radius = 9.0
    # Outlines are one pixel wide on the larger canvas, which is an eighth of a pixel.
    covered = shape_coverage(shape, MIDDLE, radius).sum().item()
    assert covered == pytest.approx(area * radius**2, rel=0.05)


def test_the_background_shows_at_the_edge_and_the_colour_in_the_middle():
    for scene in sample_scenes(50, 2):
        image = draw_scene(scene).float()
        background = torch.tensor(BACKGROUNDS[scene.background])
        assert (image[:, 0, 0] - background).abs().max() <= TINT + 0.5
        x, y = (int(coordinate) for coordinate in scene.center)
        color = torch.tensor(COLORS[scene.color])
        assert (image[:, y, x] - color).abs().max() <= TINT + 0.5


def test_no_shape_leaves_the_image():
    for scene in sample_scenes(1_000, 3, BASE_SHAPES + CONCEPT_SHAPES):
        low, high = min(scene.center) - scene.radius, max(scene.center) + scene.radius
        assert low >= 0
        assert high <= SIDE


@pytest.mark.parametrize("shape", BASE_SHAPES + CONCEPT_SHAPES)
def test_shapes_lie_within_their_radius(shape):
    rows, columns = shape_coverage(shape, MIDDLE, 8.0).nonzero(as_tuple=True)
    # Pixels 8 to 23 are inside; the outline may touch one more.
    assert {*rows.tolist(), *columns.tolist()} <= set(range(7, 25))


def test_scenes_as_pairs():
    pairs = open_pairs("scenes", limit=6)
    scenes = sample_scenes(6, PAIRS_SEED, CONCEPT_SHAPES)
    assert pairs.captions == [scene.caption for scene in scenes]
    assert pairs.sizes == [(SIDE, SIDE)] * 6
    assert pairs.summary() == "6 pairs, 0 quarantined, 0 images without a caption"
    again = pickle.loads(pickle.dumps(pairs))
    for index, scene in enumerate(scenes):
        assert torch.equal(again.image(index), draw_scene(scene))
    assert again.fingerprint() == open_pairs("scenes", limit=6).fingerprint()


def test_the_pairs_are_512_by_default():
    assert len(open_pairs("scenes")) == 512


def test_scenes_as_labelled_images():
    shapes, colors = BASE_SHAPES + CONCEPT_SHAPES, list(COLORS)
    images = open_images("scenes", size=SIDE, channels=3, limit=50)
    for index, scene in enumerate(sample_scenes(50, IMAGES_SEED, shapes)):
        assert torch.equal((images.image(index) * 255).round(), draw_scene(scene).float())
        shape, color = divmod(images.labels[index].item(), len(colors))
        assert (shapes[shape], colors[color]) == (scene.shape, scene.color)
    assert open_images("scenes", size=16, channels=1, limit=2).image(0).shape == (1, 16, 16)


def test_scenes_have_no_options():
    with pytest.raises(InputError, match="not have the form scenes"):
        open_pairs("scenes:star")
    with pytest.raises(InputError, match="not have the form scenes"):
        open_images("scenes:star", size=32, channels=3)
    with pytest.raises(InputError, match="no columns"):
        open_pairs("scenes", caption_column="text")


def test_a_scene_is_the_same_with_every_version():
    """Results, feature network and demo model were made with these scenes."""
    scene = sample_scene(7, seed=0)
    assert scene.caption == "a yellow diamond on a pink background"
    assert (scene.position, scene.size) == ("top left", "large")
    numbers = torch.tensor([*scene.center, scene.radius, *scene.rgb, *scene.background_rgb])
    known = [11.0799, 10.1627, 9.2346, 248.708, 221.907, 53.863, 236.364, 179.787, 189.564]
    assert torch.allclose(numbers, torch.tensor(known), rtol=1e-4)
