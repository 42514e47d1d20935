"""Noise is read at the images' own resolution and carried through the reduction."""

import pytest
import torch
from torchvision.transforms.v2 import functional as v2

from latent_robust.audit import reduced_noise
from latent_robust.audit.spectrum import measure_spectrum


def drawings(count, side, channels=1):
    """Smooth images without noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator) * 1.2 - 0.6
    return v2.resize(coarse, [side, side], antialias=True)


def noisy(images, sigma, share):
    generator = torch.Generator().manual_seed(1)
    hit = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    return images + hit * sigma * torch.randn(images.shape, generator=generator)


def fit_to(side):
    return lambda image: v2.resize(image, [side, side], antialias=True)


@pytest.mark.parametrize("side", [56, 48, 32, 24])
@pytest.mark.parametrize(("sigma", "share"), [(0.4, 0.5), (0.2, 0.9)])
def test_reduced_noise_is_read_within_a_tenth(side, sigma, share):
    clean = drawings(200, 64)
    dirty = noisy(clean, sigma, share)
    samples, originals = fit_to(side)(dirty), list(dirty)
    truth = (samples - fit_to(side)(clean)).square().mean().sqrt()
    left = reduced_noise(originals, fit_to(side))
    assert measure_spectrum(samples, left).level == pytest.approx(float(truth), rel=0.1)
    assert measure_spectrum(samples).level < 0.85 * truth  # in the small image alone it hides


def test_sizes_may_differ_and_colour_has_noise_of_its_own():
    clean = [*drawings(60, 64, 3), *drawings(60, 96, 3)]
    generator = torch.Generator().manual_seed(1)
    dirty = [image + 0.3 * torch.randn(image.shape, generator=generator) for image in clean]
    samples = torch.stack([fit_to(32)(image) for image in dirty])
    truth = (samples - torch.stack([fit_to(32)(image) for image in clean])).square().mean().sqrt()
    left = reduced_noise(dirty, fit_to(32))
    assert measure_spectrum(samples, left).level == pytest.approx(float(truth), rel=0.1)


def test_noise_that_was_added_after_the_reduction_is_read_as_well():
    clean = drawings(200, 64)
    dirty = noisy(clean, 0.4, 0.5)
    samples = noisy(fit_to(32)(dirty), 0.2, 1.0)
    truth = (samples - fit_to(32)(clean)).square().mean().sqrt()
    left = reduced_noise(list(dirty), fit_to(32))
    assert measure_spectrum(samples, left).level == pytest.approx(float(truth), rel=0.1)


def test_clean_images_and_images_that_are_not_resized_have_none_left():
    clean = drawings(100, 64)
    assert reduced_noise(list(clean), fit_to(32)) is None
    assert reduced_noise(list(noisy(clean, 0.4, 1)), lambda image: image) is None
