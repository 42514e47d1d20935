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
    found = measure_spectrum(digits(f"gaussian:fraction={fraction},sigma={sigma}")).level
    assert found == pytest.approx(2 * sigma * fraction**0.5, rel=0.05)


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


def test_all_of_a_large_image_is_looked_at():
    """Noise in its left half only: half of the patches have it."""
    images = torch.zeros(40, 1, 256, 256)
    noise = torch.randn(40, 1, 256, 128, generator=derive_generator(0, "noise"))
    images[..., :128] = 0.3 * noise
    assert measure_spectrum(images).level == pytest.approx(0.3 * 0.5**0.5, rel=0.1)


def test_what_is_given_and_does_not_help_is_not_called_clean():
    found = recommend(digits("gaussian:fraction=0.9,sigma=0.2"), weight=0.0)
    assert found.weighting is None
    assert "clean:" not in found.summary()


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


def test_a_recommendation_is_the_best_forecast_of_all_that_were_tried():
    found = recommend(digits("gaussian:fraction=0.9,sigma=0.2"))
    assert found.robust == found.spectrum.distance(found.weighting)
    assert found.robust < found.plain / 4


def test_the_command_says_what_to_type(tmp_path, capsys):
    told = ["recommend", "--data=digits", "--size=8", "--channels=1", "--offline"]
    noisy = "--contamination=gaussian:fraction=0.9,sigma=0.2"
    assert main([*told, noisy, "--try=3,0.5", f"--out={tmp_path / 'found.json'}"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"--weight {found['weight']:g} --band {found['band']:g}" in said
    assert "weight 3, band 0.5: forecast" in said
    assert main(told) == 0
    said = capsys.readouterr().out
    assert "look clean" in said
    assert "train-pixel" not in said


@pytest.mark.parametrize(
    "options, message",
    [
        (["--try=3"], "needs WEIGHT,BAND"),
        (["--try=3,-1"], "`band` must be > 0"),
        (["--limit=1"], "one image"),
    ],
)
def test_bad_input_is_a_clear_message(options, message, capsys):
    told = ["recommend", "--data=digits", "--size=8", "--channels=1", *options]
    try:
        code = main(told)
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_what_training_reaches_of_a_weight_is_what_the_forecast_counts():
    spectrum = measure_spectrum(digits("gaussian:fraction=1,sigma=0.2"))
    half = replace(spectrum, reached=0.5).distance(Weighting("band", 8, 0.2))
    assert half == spectrum.distance(Weighting("band", 4, 0.2))
