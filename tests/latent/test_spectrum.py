import pytest
import torch
import torch.nn.functional as F

from latent_robust.data import estimate_band
from latent_robust.latent.band import FLOOR, encoder_gain, latent_band
from latent_robust.latent.components import Components

from .tiny import make_pipeline


class LinearEncoder:
    """Means of 2x2 pixels, times 3."""

    def encode_pictures(self, samples):
        mean = 3 * F.avg_pool2d(samples, 2)
        return mean, torch.zeros_like(mean)


def pictures(level, count=24):
    """Smooth ones with noise of this level."""
    ramp = torch.linspace(-1, 1, 32).expand(count, 3, 32, 32)
    return ramp + level * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))


def test_gain_of_a_linear_encoder_is_the_norm_of_its_rows():
    samples = pictures(0.3)
    # The mean of 4 independent values has half their standard deviation. The gain is measured on
    # 24 * 3 * 256 values of noise, so to 1 / sqrt(2 * 18432) = 0.5 %; the fourfold.
    expected = 3 / 2 * estimate_band(samples)
    assert latent_band(samples, LinearEncoder()) == pytest.approx(expected, rel=0.02)


def test_each_channel_has_its_gain():
    class Encoder:
        def encode_pictures(self, samples):
            return samples * torch.tensor([1.0, 2, 4]).view(3, 1, 1), None

    # Each is measured on 24 * 1024 values: 0.45 %, the fourfold.
    gain = encoder_gain(list(pictures(0)), 0.3, Encoder())
    assert torch.allclose(gain, torch.tensor([1.0, 2, 4]), rtol=0.02)


def test_band_follows_the_true_level():
    # As exact as `estimate_band` itself on pictures of 32 pixels (see test_levels).
    assert latent_band(pictures(0.2), LinearEncoder()) == pytest.approx(3 / 2 * 0.2, rel=0.08)


def test_pictures_may_come_one_by_one_and_in_several_sizes():
    samples = pictures(0.3)
    assert latent_band(iter(samples), LinearEncoder()) == latent_band(samples, LinearEncoder())
    assert latent_band([*samples[:8], samples[0][:, :16]], LinearEncoder()) > 0


def test_flat_pictures_have_a_small_band_above_zero():
    flat = torch.zeros(12, 3, 32, 32)
    # 12 * 3 * 256 values: 0.7 %, the fourfold.
    assert latent_band(flat, LinearEncoder()) == pytest.approx(3 / 2 * FLOOR, rel=0.03)


def test_band_of_a_real_vae_is_in_units_of_its_scaled_latents():
    components = Components.of(make_pipeline("sd1"), "sd1")
    samples = pictures(0.3, count=4)
    band = latent_band(samples, components)
    assert band > 0
    factor = components.vae.config.scaling_factor
    components.vae.register_to_config(scaling_factor=3 * factor)
    assert latent_band(samples, components) == pytest.approx(3 * band, rel=1e-5)
