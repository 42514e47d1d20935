import json

import pytest
import torch

from latent_robust.audit import read_levels
from latent_robust.errors import InputError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_levels_in_any_order(tmp_path):
    rows = [{"index": 2, "level": 0.5, "more": 1}, {"index": 0, "level": 0}]
    path = write(tmp_path / "levels.jsonl", [*rows, {"index": 1, "level": 0.25}])
    assert torch.equal(read_levels(path, 3, 1).level, torch.tensor([0.0, 0.25, 0.5]))


def test_from_when_on_a_sample_is_usable(tmp_path):
    """A number, never, or what its level allows; but not less."""
    least = [{"usable_from": 0.75}, {"usable_from": "never"}, {}, {"usable_from": 0.1}]
    rows = [{"index": i, "level": 0.5, **row} for i, row in enumerate(least)]
    levels = read_levels(write(tmp_path / "levels.jsonl", rows), 4, 1)
    assert levels.usable_from.tolist() == [0.75, float("inf"), 0.5, 0.5]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"index": 0, "level": 1}], r"no level for 2 of 3 samples \(index 1, 2\)"),
        ([{"index": 0, "level": 1}] * 2, "line 2: index 0 appears twice"),
        ([{"index": 3, "level": 1}], r"0\.\.2, got 3"),
        ([{"index": -1, "level": 1}], "got -1"),
        ([{"index": 0, "level": -0.1}], "line 1: `level` must be a number >= 0, got -0.1"),
        ([{"index": 0, "level": float("nan")}], "got nan"),
        ([{"index": 0, "level": "high"}], "got high"),
        ([{"index": 0, "level": 0, "usable_from": -1}], "`usable_from` must be .* got -1"),
        ([{"index": 0, "level": 0, "usable_from": "later"}], 'or "never", got later'),
        ([{"index": 0, "level": [0.1, -1]}], "got -1"),
        (
            [{"index": i, "level": [0.1] * (i + 1)} for i in range(3)],
            "1 or 2 or 3 levels for",
        ),
        ([{"index": i, "level": [0.1] * 3} for i in range(3)], "3 levels for a sample of 2"),
        ([{"index": 0}], "line 1: expected"),
        ([3], "line 1: expected"),
    ],
)
def test_wrong_levels(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_levels(write(tmp_path / "levels.jsonl", rows), 3, 2)


def test_unreadable_levels(tmp_path):
    with pytest.raises(InputError, match="cannot read the levels"):
        read_levels(tmp_path / "none.jsonl", 3, 1)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not a text file"):
        read_levels(tmp_path / "binary", 3, 1)
