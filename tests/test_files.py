import json

import pytest

from latent_robust.errors import InputError
from latent_robust.files import whole_folder, write_jsonl


def test_json_lines_are_whole_and_take_any_name(tmp_path):
    rows = [{"name": "a.png", "reason": "0 bytes"}, {"name": "\udcff.png", "reason": "x"}]
    write_jsonl(rows, tmp_path / "quarantine.jsonl")
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]
    with pytest.raises(InputError, match="cannot write"):
        write_jsonl(rows, tmp_path / "quarantine.jsonl" / "quarantine.jsonl")


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    final = tmp_path / "network"
    with whole_folder(final) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(InputError, match="cannot write"), whole_folder(final) as folder:
        (folder / "absent" / "new").write_text("new")
    assert [path.name for path in final.iterdir()] == ["old"]
    with whole_folder(final) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
