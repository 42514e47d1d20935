from math import log

import pytest
import torch

from latent_robust.data import assign_bucket, fit_bucket, make_buckets
from latent_robust.data.buckets import framing
from latent_robust.errors import InputError


def test_buckets_at_512():
    tall = [(680, 384), (624, 416), (584, 448), (544, 480)]
    wide = [(width, height) for height, width in reversed(tall)]
    assert make_buckets(512) == [*tall, (512, 512), *wide]


@pytest.mark.parametrize("multiple", [8, 16, 64])
@pytest.mark.parametrize("resolution", [64, 256, 512, 768, 1024])
@pytest.mark.parametrize("max_ratio", [1.0, 2.0, 4.0])
def test_buckets_have_about_the_same_area_and_come_in_mirrored_pairs(
    resolution, multiple, max_ratio
):
    buckets = make_buckets(resolution, multiple, max_ratio)
    assert (resolution, resolution) in buckets
    assert buckets == [(width, height) for height, width in reversed(buckets)]
    assert buckets == sorted(set(buckets), key=lambda size: size[1] / size[0])
    for height, width in buckets:
        assert height % multiple == width % multiple == 0
        assert max(height, width) <= max_ratio * min(height, width)
        # One more multiple on the longer side would exceed the area.
        assert (
            height * width <= resolution**2 < min(height, width) * (max(height, width) + multiple)
        )


def test_ratio_one_is_one_square():
    assert make_buckets(64, max_ratio=1) == [(64, 64)]


def test_impossible_buckets_are_refused():
    with pytest.raises(InputError, match=r"multiple of 8 .*got 30; the nearest is 32"):
        make_buckets(30)
    with pytest.raises(InputError, match=r"got 2; the nearest is 8"):
        make_buckets(2)
    with pytest.raises(InputError, match=r"`max_ratio` must be >= 1, got 0.5"):
        make_buckets(64, max_ratio=0.5)


def test_an_image_with_a_buckets_ratio_gets_that_bucket_at_any_scale():
    buckets = make_buckets(512)
    for height, width in buckets:
        assert assign_bucket((height, width), buckets) == (height, width)
        assert assign_bucket((3 * height, 3 * width), buckets) == (height, width)


def test_the_nearest_bucket_is_chosen_by_log_ratio():
    buckets = make_buckets(512, max_ratio=4)
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(1, 3000, (200, 2), generator=generator).tolist():
        chosen = assign_bucket((height, width), buckets)
        distances = [abs(log(h * width / (w * height))) for h, w in buckets]
        assert distances[buckets.index(chosen)] == pytest.approx(min(distances))
    assert assign_bucket((10_000_000, 1), buckets) == buckets[0]
    assert assign_bucket((1, 10_000_000), buckets) == buckets[-1]


def test_an_image_of_the_buckets_size_is_unchanged():
    image = torch.rand(3, 24, 40)
    assert torch.equal(fit_bucket(image, (24, 40)), image)


@pytest.mark.parametrize("size", [(480, 80), (80, 480), (37, 41), (24, 40), (1, 1), (2, 1000)])
def test_the_image_covers_the_complete_bucket(size):
    white = torch.full((3, *size), 255, dtype=torch.uint8)
    fitted = fit_bucket(white, (24, 40))
    assert fitted.shape == (3, 24, 40)
    assert fitted.dtype == torch.uint8
    assert (fitted == 255).all()


def test_the_center_is_kept():
    # Black except for the central part with the bucket's aspect ratio.
    image = torch.zeros(1, 60, 40)
    image[:, 18:42] = 1
    assert torch.equal(fit_bucket(image, (24, 40)), torch.ones(1, 24, 40))
    assert torch.equal(fit_bucket(image, (12, 20)), torch.ones(1, 12, 20))


def test_downsizing_averages():
    # A downsized chessboard is gray; without antialiasing it would stay black or white.
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    fitted = fit_bucket(board[None].float(), (8, 8))
    # The triangle filter averages 16 pixels, half of them black, except at the border.
    assert (fitted - 0.5).abs().max() < 0.02


def test_a_strip_does_not_grow():
    # Resizing before the crop would make 40 x 400,000,000 pixels of this image.
    strip = torch.ones(1, 10_000_000, 1, dtype=torch.uint8)
    assert (fit_bucket(strip, (24, 40)) == 1).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512, 0, 0, 512, 512)),
        ((300, 300), (300, 300, 0, 0, 512, 512)),
        ((1024, 2048), (1024, 2048, 0, 256, 512, 512)),
        ((600, 512), (600, 512, 44, 0, 512, 512)),
    ],
)
def test_framing_has_the_original_size_and_the_crop(size, expected):
    assert framing(size, (512, 512)) == expected
