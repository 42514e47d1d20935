import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from latent_robust.data import BadImage, decode_image


def decode(data, channels=3):
    return decode_image(data, "name", channels)


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _with_a_hole(data):
    return data[:100] + bytes(200) + data[300:]


def test_lossless_image_is_bit_equal(encode, noise):
    assert torch.equal(decode(encode(noise())), pixels(noise()))


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_colour_by_channels(encode, noise, channels):
    gray = noise(channels=1)
    image = decode(encode(gray), channels)
    assert image.shape == (channels, 10, 12)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(np.array(gray)).expand(channels, -1, -1))


def test_exif_orientation_is_honoured(encode, noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # display turned clockwise
    upright = noise().transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(decode(encode(noise(), exif=exif)), pixels(upright))


def test_transparency_is_composited_on_white(encode, noise):
    hidden = np.array(noise(channels=4))
    hidden[..., 3] = 0
    assert (decode(encode(Image.fromarray(hidden))) == 255).all()
    hidden[..., 3] = 255
    expected = torch.from_numpy(hidden[..., :3].copy()).permute(2, 0, 1)
    assert torch.equal(decode(encode(Image.fromarray(hidden))), expected)


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_half_and_palette_transparency(encode, mode):
    if mode == "LA":
        data = encode(Image.new("LA", (4, 4), (0, 128)))
        # black at 128 / 255 over white is 127
        assert (decode(data) == 127).all()
    else:
        data = encode(Image.new("P", (4, 4), 0), transparency=0)
        assert (decode(data) == 255).all()


def test_cmyk_is_converted(encode):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = decode(encode(red, "JPEG", quality=100)).int()
    # JPEG at quality 100 changes a flat image by a few gray levels at most.
    assert (image - torch.tensor([255, 0, 0]).view(3, 1, 1)).abs().max() <= 3


def test_first_frame_of_an_animation(encode):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda encode, noise: b"", "0 bytes"),
        (lambda encode, noise: b"a text file", "not an image"),
        (lambda encode, noise: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (lambda encode, noise: encode(noise((64, 64)))[:-400], "truncated"),
        (lambda encode, noise: encode(noise((64, 64)), "JPEG")[:-400], "truncated"),
        (lambda encode, noise: encode(noise((64, 64)))[:40], "damaged at its beginning"),
        (lambda encode, noise: _with_a_hole(encode(noise((64, 64)))), "cannot be decoded"),
        (
            lambda encode, noise: encode(Image.fromarray(np.zeros((4, 4), np.uint16))),
            "8-bit PNG",
        ),
        (
            lambda encode, noise: encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
            "mode F",
        ),
        (
            lambda encode, noise: encode(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
            "mode I",
        ),
    ],
    ids=["empty", "text", "eps", "png", "jpeg", "header", "hole", "16-bit", "float", "integer"],
)
def test_reason_of_a_bad_image(encode, noise, make, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        decode(make(encode, noise))
    assert str(caught.value) == f"name: {caught.value.reason}"


@pytest.mark.parametrize("side", [10_000, 14_000], ids=["pillow warns", "pillow raises"])
def test_bomb_is_refused_and_no_global_is_touched(encode, side):
    data = encode(Image.new("1", (side, side)))
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with pytest.raises(BadImage, match="too large"):
        decode(data)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_bomb_is_refused_before_its_pixels_are_decoded(bomb, monkeypatch):
    # Another library may have switched Pillow's own check off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="10000x10000"):
        decode(bomb)
