"""What is measured of pictures: closed forms, and dirt that was made on purpose."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision.transforms.v2 import functional as v2

from latent_robust.audit.pictures import jpeg, measures, repeats, texts
from latent_robust.audit.pictures.findings import remaining_noise

from .made import as_jpeg, rng, texture


def block_of(picture):
    return measures.missing_block(picture, measures.gray(picture))


def bars_of(picture):
    return measures.bars(measures.gray(picture))


def clipped_of(picture):
    return measures.clipped(measures.gray(picture))


def gray_step(blur, side=64):
    step = np.where(np.arange(side) < 3 * side // 8, 50.0, 200.0)
    values = np.tile(step, (side, 1))
    return ndimage.gaussian_filter(values, (0, blur)).astype(np.float32)


# ------------------------------------------------------------------ noise


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.02, 0.05, 0.1])
def test_white_noise_is_read_to_a_tenth(level, channels):
    picture = 128 + 255 * level * rng().normal(size=(128, 128, channels))
    read = measures.noise(np.clip(picture, 0, 255).round().astype(np.uint8))
    assert read == pytest.approx(level, rel=0.1)


def test_texture_in_a_part_of_the_picture_is_no_noise():
    picture = texture()
    assert measures.noise(picture) < 0.02
    assert measures.noise(np.zeros((64, 64, 3), np.uint8)) == 0
    assert measures.noise(np.zeros((8, 8, 1), np.uint8)) is None


@pytest.mark.parametrize("width", [256, 300, 640])
def test_a_reduction_leaves_as_much_noise_as_its_weights_say(width):
    white = torch.randn(1, 256, width, generator=torch.Generator().manual_seed(0))
    reduced = v2.resize(white, [64, round(64 * width / 256)], antialias=True)
    (said,) = remaining_noise(np.array([width]), np.array([256]), 64)
    assert said == pytest.approx(float(reduced.std()), rel=0.1)
    assert remaining_noise(np.array([width]), np.array([256]), 512) == 1


# ------------------------------------------------------------------ blur and detail


@pytest.mark.parametrize("blur", [0.7, 1.0, 2.0])
def test_the_width_of_an_edge_is_the_blur(blur):
    assert measures.edge_width(gray_step(blur)) == pytest.approx(blur, rel=0.15)


def test_a_blurred_background_is_no_blurred_picture():
    picture = np.concatenate([gray_step(3, 128)] * 3 + [gray_step(0.5, 128)])
    assert measures.edge_width(picture) < 0.7
    assert measures.edge_width(np.full((64, 64), 9.0, np.float32)) is None


@pytest.mark.parametrize("how", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_an_enlarged_picture_lacks_detail(how):
    small = Image.fromarray(texture(64, smooth=0.5))
    large = np.asarray(small.resize((128, 128), how))
    lost = [
        measures.lost_detail(measures.power_by_band(measures.gray(picture)))
        for picture in (texture(128, smooth=0.5), large)
    ]
    assert lost[1] > lost[0] + 1


def test_white_noise_has_its_variance_at_every_frequency():
    values = 0.3 * rng().normal(size=(128, 128)).astype(np.float32)
    power = measures.power_by_band(values)
    assert power[2:] == pytest.approx(0.09, rel=0.3)
    assert power[2:].mean() == pytest.approx(0.09, rel=0.03)


# ------------------------------------------------------------------ JPEG


@pytest.mark.parametrize("quality", [10, 25, 40, 50, 75, 90, 95])
def test_the_tables_give_the_quality(quality):
    tables = as_jpeg(texture(), quality).quantization
    assert jpeg.quality_of_tables([tables[0]]) == pytest.approx(quality, abs=1.5)


@pytest.mark.parametrize("quality", [15, 40, 75])
def test_the_pixels_remember_the_quality(quality):
    pixels = measures.gray(np.asarray(as_jpeg(texture(smooth=0.7), quality)))
    assert jpeg.quality_of_pixels(pixels) == pytest.approx(quality, abs=4)


def test_what_was_never_recompressed_has_no_quality():
    picture = texture(smooth=0.7)
    assert jpeg.quality_of_pixels(measures.gray(picture)) is None
    compressed = np.asarray(as_jpeg(picture, 30))
    moved = measures.gray(compressed[3:, 5:])  # its grid lies elsewhere: not seen
    assert jpeg.quality_of_pixels(moved) is None
    assert jpeg.quality_of_pixels(np.zeros((8, 8), np.float32)) is None


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_missing_block_is_found_where_it_is(colour):
    picture = texture()
    assert block_of(picture) is None
    picture[20:52, 60:100] = colour
    share, box = block_of(picture)
    assert np.abs(np.array(box) - [20, 60, 52, 100]).max() <= 1
    assert share == pytest.approx(32 * 40 / 128**2, rel=0.1)


def test_backgrounds_coloured_shapes_and_circles_are_no_missing_blocks():
    white = np.full((64, 64, 3), 255, np.uint8)
    white[20:40, 20:40] = texture(20)
    assert block_of(white) is None
    flag = texture(64)
    flag[10:40, 10:40] = (200, 30, 30)
    assert block_of(flag) is None
    disc = texture(64)
    rows, columns = np.mgrid[:64, :64]
    disc[(rows - 32) ** 2 + (columns - 32) ** 2 < 200] = 128
    assert block_of(disc) is None


def test_bars_are_black_and_reach_from_side_to_side():
    picture = np.maximum(texture(100), 40)
    assert bars_of(picture) == 0
    boxed = picture.copy()
    boxed[:10], boxed[-15:] = 0, 0
    assert bars_of(boxed) == pytest.approx(0.1)
    assert bars_of(boxed.transpose(1, 0, 2)) == pytest.approx(0.1)
    drawing = np.zeros((100, 100, 1), np.uint8)
    drawing[30:70, 40:60] = 255
    assert bars_of(drawing) == 0
    assert bars_of(np.zeros((50, 50, 3), np.uint8)) == 0


def test_lost_light_is_not_a_white_page():
    ramp = np.linspace(100, 600, 200)
    light = np.clip(np.tile(ramp, (200, 1)), 0, 255).astype(np.uint8)[..., None]
    assert clipped_of(light) == 0  # a ramp this steep has few values that are nearly white
    slow = np.clip(np.tile(np.linspace(200, 280, 200), (200, 1)), 0, 255).astype(np.uint8)
    assert clipped_of(slow[..., None]) > 0.2
    page = np.full((200, 200, 1), 255, np.uint8)
    page[50:60, 20:180] = 0
    assert clipped_of(page) == 0


def test_gray_in_one_channel_and_in_three():
    assert measures.colourless(np.repeat(texture(channels=1), 3, axis=2))
    assert not measures.colourless(texture())
    assert measures.colourless(texture(channels=1))


# ------------------------------------------------------------------ repeats


def marked(picture):
    """With a half-transparent bracket."""
    picture = picture.astype(float)
    for part in (np.s_[40:44, 30:90], np.s_[40:80, 30:34], np.s_[76:80, 30:90]):
        picture[part] = 0.4 * picture[part] + 0.6 * 255
    return picture.round().astype(np.uint8)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_mark_is_what_pictures_share(share):
    pictures = [texture(seed=seed) for seed in range(60)]
    has = np.arange(60) < share * 60
    pictures = [marked(p) if own else p for p, own in zip(pictures, has, strict=True)]
    mark, why = repeats.find_mark(map(repeats.slopes, pictures))
    assert why == ""
    scores = np.array([mark.score(repeats.slopes(p)) for p in pictures], np.float32)
    assert repeats.shows_mark(scores)
    assert ((scores > repeats.MARKED) == has).mean() > 0.95


def test_where_nothing_repeats_there_is_no_mark():
    mark, why = repeats.find_mark(repeats.slopes(texture(seed=seed)) for seed in range(60))
    assert (mark, why) == (None, "")
    assert "at least" in repeats.find_mark([repeats.slopes(texture())])[1]


def test_pictures_of_one_layout_cannot_be_told_from_marked_ones():
    noise = (3.0 * rng(seed).normal(size=(128, 128, 3)) for seed in range(40))
    same = (np.clip(texture() + one, 0, 255).astype(np.uint8) for one in noise)
    mark, why = repeats.find_mark(map(repeats.slopes, same))
    assert mark is None
    assert "laid out alike" in why


def test_copies_are_grouped_and_others_are_not():
    pictures = [texture(seed=seed, smooth=2) for seed in range(20)]
    pictures += [pictures[3], np.asarray(as_jpeg(pictures[5], 60))]
    pictures.append(np.asarray(Image.fromarray(pictures[7]).resize((100, 100))))
    exact = [p.tobytes() for p in pictures]
    hashes = np.array([repeats.perceptual_hash(measures.gray(p)) for p in pictures], np.uint64)
    thumbs = np.stack([repeats.thumbnail(measures.gray(p)) for p in pictures])
    equal, near = repeats.groups(exact, hashes, thumbs)
    assert equal.tolist() == [*range(20), 3, 21, 22]
    assert near.tolist() == [*range(20), 3, 5, 7]


# ------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    "caption",
    ["IMG_2041.jpg", "dsc-0031", "12345", "a photo", "untitled", "https://a.b/c.png", "-"],
)
def test_captions_that_say_nothing(caption):
    assert texts.is_empty_of_content(caption)


@pytest.mark.parametrize("caption", ["a photo of a cat", "猫", "1girl, solo", "sks", "7 dwarfs"])
def test_captions_that_say_something(caption):
    assert not texts.is_empty_of_content(caption)


def test_what_is_wrong_with_captions_among_others():
    captions = [f"a cat number {n} sleeps" for n in range(30)]
    captions += ["a dog"] * 12 + ["", "кот спит", "IMG_1"]
    found = texts.find_problems(captions)
    assert [list(problems) for problems in found[:30]] == [[]] * 30
    assert [list(problems) for problems in found[30:42]] == [["identical"]] * 12
    assert [list(problems) for problems in found[42:]] == [["missing"], ["script"], ["empty"]]
    assert "cyrillic" in found[43]["script"]
    assert texts.find_problems([""] * 3) == [{}] * 3
