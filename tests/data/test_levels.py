import json

import pytest
import torch

from latent_robust.data import estimate_band, read_levels
from latent_robust.errors import InputError


@pytest.mark.parametrize("channels", [1, 3])
def test_band_of_noise_on_smooth_pictures(channels):
    ramp = torch.linspace(-1, 1, 64).expand(30, channels, 64, 64)
    noise = torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    # A median of 32 x 32 wavelet coefficients has a standard error of 1.17 / 32 = 4 % of the
    # level, and the median over 30 pictures one of 1 %; the fourfold.
    assert estimate_band(ramp + 0.3 * noise) == pytest.approx(0.3, rel=0.04)


def test_band_scales_with_the_samples():
    samples = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    # Exactly linear but for rounding in float32.
    assert estimate_band(3 * samples) == pytest.approx(3 * estimate_band(samples), rel=1e-5)


def test_band_of_flat_pictures_is_zero():
    assert estimate_band(torch.full((3, 1, 8, 8), -1.0)) == 0


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_levels_in_any_order(tmp_path):
    rows = [{"index": 2, "level": 0.5, "more": 1}, {"index": 0, "level": 0}]
    path = write(tmp_path / "levels.jsonl", [*rows, {"index": 1, "level": 0.25}])
    assert torch.equal(read_levels(path, 3), torch.tensor([0.0, 0.25, 0.5]))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"index": 0, "level": 1}], r"no level for 2 of 3 samples \(index 1, 2\)"),
        ([{"index": 0, "level": 1}] * 2, "line 2: index 0 is there twice"),
        ([{"index": 3, "level": 1}], r"0\.\.2, got 3"),
        ([{"index": -1, "level": 1}], "got -1"),
        ([{"index": 0, "level": -0.1}], "line 1: `level` must be a number >= 0, got -0.1"),
        ([{"index": 0, "level": float("nan")}], "got nan"),
        ([{"index": 0, "level": "high"}], "got high"),
        ([{"index": 0, "level": [0.1, -1]}], "got -1"),
        ([{"index": i, "level": [0.1] * (i + 1)} for i in range(3)], "more levels than others"),
        ([{"index": 0}], "line 1: expected"),
        ([3], "line 1: expected"),
    ],
)
def test_wrong_levels(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_levels(write(tmp_path / "levels.jsonl", rows), 3)


def test_unreadable_levels(tmp_path):
    with pytest.raises(InputError, match="cannot read the levels"):
        read_levels(tmp_path / "none.jsonl", 3)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not a text file"):
        read_levels(tmp_path / "binary", 3)
