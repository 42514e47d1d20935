import json
from dataclasses import replace

import pytest
import torch

from latent_robust.audit.spectrum import measure_spectrum, noise_variance, recommend
from latent_robust.commands.main import main
from latent_robust.core import Weighting, derive_generator
from latent_robust.data import ContaminatedImages, open_images, parse_contamination


def digits(*specs: str) -> torch.Tensor:
    images = open_images("digits", size=8, channels=1)
    return ContaminatedImages(images, parse_contamination(list(specs)), 0).sample_tensor()


@pytest.mark.parametrize("fraction, sigma", [(0.9, 0.2), (0.9, 0.05), (0.3, 0.2), (1.0, 0.1)])
def test_the_noise_of_real_images_is_found(fraction, sigma):
    """Root mean square over the images, in units of [-1, 1]."""
    level = measure_spectrum(digits(f"gaussian:fraction={fraction},sigma={sigma}")).level
    assert level == pytest.approx(2 * sigma * fraction**0.5, rel=0.05)


def test_the_spectrum_without_the_noise_is_that_of_the_clean_images():
    clean, dirty = (
        measure_spectrum(digits()),
        measure_spectrum(digits("gaussian:fraction=0.9,sigma=0.2")),
    )
    assert clean.distance(None) == pytest.approx(0, abs=1e-6)
    lost = float((dirty.clean - clean.tau).square().sum())
    assert lost < 0.1 * float((dirty.tau - clean.tau).square().sum())


def test_white_noise_and_nothing_else_is_all_noise():
    noise = 0.3 * torch.randn(2000, 2, 16, 16, generator=derive_generator(0, "noise"))
    assert measure_spectrum(noise).level == pytest.approx(0.3, rel=0.02)


def test_gray_images_in_three_channels_have_the_noise_of_one():
    noisy = digits("gaussian:fraction=0.9,sigma=0.2")
    assert measure_spectrum(noisy.expand(-1, 3, -1, -1)).level == measure_spectrum(noisy).level


def test_all_parts_of_a_large_image_are_measured():
    """Noise in its left half only: half of the patches have it."""
    images = torch.zeros(40, 1, 256, 256)
    noise = torch.randn(40, 1, 256, 128, generator=derive_generator(0, "noise"))
    images[..., :128] = 0.3 * noise
    assert measure_spectrum(images).level == pytest.approx(0.3 * 0.5**0.5, rel=0.1)


def test_a_fixed_weight_that_does_not_help_does_not_make_images_look_clean():
    result = recommend(digits("gaussian:fraction=0.9,sigma=0.2"), weight=0.0)
    assert result.weighting is None
    assert "clean:" not in result.summary()


def test_structure_in_few_directions_does_not_count_as_noise():
    variances = torch.cat([torch.tensor([9.0, 4.0, 1.0, 0.5]), torch.full((12,), 0.25)])
    assert noise_variance(variances) == 0.25
    assert noise_variance(torch.tensor([2.0])) == 2.0


@pytest.mark.parametrize("specs", [(), ("blur:fraction=0.9,sigma=1",)])
def test_images_without_noise_need_no_regularizer(specs):
    assert recommend(digits(*specs)).weighting is None


def test_more_noise_asks_for_more_weight():
    some, much = (
        recommend(digits(f"gaussian:fraction=0.9,sigma={sigma}")).weighting for sigma in (0.05, 0.2)
    )
    assert some.weight * some.band**2 < much.weight * much.band**2


def test_a_recommendation_has_the_smallest_forecast_distance():
    result = recommend(digits("gaussian:fraction=0.9,sigma=0.2"))
    assert result.robust == result.spectrum.distance(result.weighting)
    assert result.robust < result.plain / 4


def test_the_command_prints_the_options_to_type(tmp_path, capsys):
    args = ["recommend", "--data=digits", "--size=8", "--channels=1", "--offline"]
    noisy = "--contamination=gaussian:fraction=0.9,sigma=0.2"
    assert main([*args, noisy, "--try=3,0.5", f"--out={tmp_path / 'result.json'}"]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"--weight {result['weight']:g} --band {result['band']:g}" in output
    assert "weight 3, band 0.5: forecast" in output
    assert main(args) == 0
    output = capsys.readouterr().out
    assert "look clean" in output
    assert "train-pixel" not in output


@pytest.mark.parametrize(
    "options, message",
    [
        (["--try=3"], "needs WEIGHT,BAND"),
        (["--try=3,-1"], "`band` must be > 0"),
        (["--limit=1"], "one image"),
    ],
)
def test_bad_input_is_a_clear_message(options, message, capsys):
    args = ["recommend", "--data=digits", "--size=8", "--channels=1", *options]
    try:
        code = main(args)
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_the_forecast_counts_the_share_of_the_weight_that_training_reaches():
    spectrum = measure_spectrum(digits("gaussian:fraction=1,sigma=0.2"))
    half = replace(spectrum, reached_share=0.5).distance(Weighting("band", 8, 0.2))
    assert half == spectrum.distance(Weighting("band", 4, 0.2))
