import json
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F

from latent_robust.commands.main import main as latent_robust
from latent_robust.core import Parameterization, derive_generator
from latent_robust.latent.base.components import Components
from latent_robust.latent.spectrum import encoder_gain, latent_spectrum, recommend_latents

from .tiny import make_pipeline

SCALES = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)


class LinearEncoder:
    """Means of 2x2 pixels; each channel in units of its own."""

    class process:
        parameterization = Parameterization.EPSILON

    def encode_images(self, samples):
        mean = SCALES * F.avg_pool2d(samples, 2)
        return mean, torch.full_like(mean, 0.01)


def images(level: float, count: int = 3000, side: int = 16) -> torch.Tensor:
    """Waves of one direction each, with noise of this level."""
    generator = derive_generator(0, "waves")
    phase, slope = torch.rand(2, count, 1, 1, 1, generator=generator)
    place = torch.arange(side).view(1, 1, 1, side)
    waves = 0.8 * torch.sin(6.28 * phase + 0.6 * slope * place).expand(count, 3, side, side)
    return waves + level * torch.randn(waves.shape, generator=generator)


def test_the_noise_of_latents_is_what_the_encoder_makes_of_the_images_noise():
    """The mean of four independent values has half of their standard deviation."""
    spectrum = latent_spectrum(images(0.3), 0.3, LinearEncoder(), batch=8)
    expected = 0.3 / 2 * SCALES.square().mean().sqrt()
    assert spectrum.level == pytest.approx(float(expected), rel=0.02)
    assert len(spectrum.tau) == 3 * 8 * 8  # the whole latent is one patch
    torch.testing.assert_close(spectrum.by_channel, 0.15 * SCALES.flatten(), rtol=0.02, atol=0)
    assert spectrum.band(1.0) == pytest.approx((0.15, 0.3, 0.6), rel=0.03)
    torch.testing.assert_close(spectrum.shares.sum(1), torch.ones(192, dtype=torch.float64))


def test_what_lies_above_the_noise_is_the_spectrum_of_clean_latents():
    # 16 images for each direction: their covariance is known to a quarter of the noise's.
    clean = latent_spectrum(images(0.0), 1e-6, LinearEncoder(), batch=8)
    dirty = latent_spectrum(images(0.3), 0.3, LinearEncoder(), batch=8)
    lost = (dirty.clean.sort().values - clean.tau.sort().values).square().sum()
    assert lost < 0.1 * (dirty.tau.sort().values - clean.tau.sort().values).square().sum()


def test_how_many_are_encoded_at_a_time_changes_nothing():
    one, several = (latent_spectrum(images(0.3, 24), 0.3, LinearEncoder(), b) for b in (1, 5))
    torch.testing.assert_close(one.tau, several.tau)
    torch.testing.assert_close(one.noise, several.noise)


def test_each_channel_has_its_gain():
    # Each is measured on 64 * 64 values: 1.1 %, the fourfold.
    gain = encoder_gain(list(images(0.0, 64)), 0.3, LinearEncoder())
    torch.testing.assert_close(gain, SCALES.flatten() / 2, rtol=0.045, atol=0)


def test_noisy_images_get_a_weight_and_clean_ones_none():
    noisy = recommend_latents(images(0.3), LinearEncoder(), "random")
    assert noisy.noise == pytest.approx(0.3, rel=0.05)
    assert noisy.weighting.weight > 0
    assert noisy.robust < noisy.plain / 3
    clean = recommend_latents(images(0.0), LinearEncoder(), "random")
    assert clean.clean
    assert clean.settings()["weight"] == 0


def test_of_a_real_vae_the_spectrum_is_in_units_of_its_scaled_latents():
    components = Components.of(make_pipeline("sd1"), "sd1")
    samples = images(0.3, 12, side=32)
    once = latent_spectrum(samples, 0.3, components)
    factor = components.vae.config.scaling_factor
    components.vae.register_to_config(scaling_factor=3 * factor)
    again = latent_spectrum(samples, 0.3, components)
    torch.testing.assert_close(again.tau, 3 * once.tau, rtol=1e-4, atol=1e-5)
    assert again.level == pytest.approx(3 * once.level, rel=1e-4)


def test_the_command_says_what_it_found_and_how_to_use_it(tmp_path, capsys):
    told = ["recommend", "--pairs", "--data=scenes", "--limit=40", "--resolution=32", "--offline"]
    noisy = "--contamination=gaussian:fraction=1,sigma=0.2"
    out = tmp_path / "found.json"
    tried = ["--try=3,0.5", f"--try=3{',0.5' * 16}"]  # the demo's latents have 16 channels
    assert latent_robust([*told, noisy, "--model=demo", f"--out={out}", *tried]) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["weight"] > 0
    one, several = [line for line in said.splitlines() if line.startswith("weight 3")]
    assert one.split()[-1] == several.split()[-1]
    bands = ",".join(f"{band:g}" for band in found["band"])
    assert f"--weight {found['weight']:g} --band '[{bands}]'" in said
    assert "--max-bad-fraction" not in said
    for missing, message in ((told, "needs --resolution and --model"), (told[:1], "--data")):
        with suppress(SystemExit):  # argparse
            assert latent_robust(missing) == 2
        assert message in capsys.readouterr().err
    assert latent_robust([*told, "--model=demo", "--try=3,0.5,0.5"]) == 2
    assert "2 bands; give one or 16" in capsys.readouterr().err
    for option in ("--size=8", "--channels=1"):
        assert latent_robust([*told, "--model=demo", option]) == 2
        assert f"{option[:-2]} is for images" in capsys.readouterr().err
