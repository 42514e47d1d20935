import json

import pytest

from latent_robust.latent.memoize import memoize_json


@pytest.fixture
def asked() -> list[int]:
    return []


def finder(asked: list[int]):
    def find() -> dict[str, int]:
        asked.append(1)
        return {"found": len(asked)}

    return find


def test_the_same_facts_are_looked_into_once(tmp_path, asked):
    file, find = tmp_path / "cache/known.json", finder(asked)
    assert memoize_json(file, ["a", {"b": 1}], find) == {"found": 1}
    assert memoize_json(file, ["a", {"b": 1}], find) == {"found": 1}
    assert memoize_json(file, ["a", {"b": 2}], find) == {"found": 2}
    assert memoize_json(file, ["a", {"b": 1}], find) == {"found": 1}  # the first is still known


def test_without_a_file_nothing_is_remembered(asked):
    find = finder(asked)
    assert [memoize_json(None, 0, find)["found"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, asked, text):
    file = tmp_path / "known.json"
    file.write_text(text)
    assert memoize_json(file, 0, finder(asked)) == {"found": 1}
    assert list(json.loads(file.read_text()).values()) == [{"found": 1}]
