"""A data set is audited as it is stored: nothing is changed, everything is accounted for."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from latent_robust.audit import audit_data, read_data_audit, read_levels
from latent_robust.audit.pictures import scan as scanning
from latent_robust.commands.main import main as latent_robust
from latent_robust.errors import InputError

from .made import as_jpeg, rng, texture


def checksums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def folder(tmp_path):
    """Twenty good pictures and one of each fault."""
    path = tmp_path / "data"
    path.mkdir()
    for number in range(20):
        Image.fromarray(texture(seed=number)).save(path / f"good{number:02d}.png")
        (path / f"good{number:02d}.txt").write_text(f"texture number {number} on a wall")
    noise = 40 * rng().normal(size=(128, 128, 3))
    noisy = np.clip(texture(seed=30) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path / "noisy.png")
    as_jpeg(texture(seed=31), 20).save(path / "recompressed.png")
    Image.fromarray(texture(seed=0)).save(path / "copy.bmp")
    block = texture(seed=32)
    block[30:80, 30:80] = 0
    Image.fromarray(block).save(path / "block.png")
    Image.fromarray(texture(64, seed=33)).save(path / "small.png")
    (path / "broken.png").write_bytes(b"no picture")
    (path / "notes.md").write_text("not data")
    return path


@pytest.fixture
def audit(folder):
    return audit_data(str(folder), size=128, workers=1)


def names(audit, key):
    found = audit.finding(key)
    return [] if found is None else sorted(audit.names[i] for i in found.indices.tolist())


def test_each_fault_is_found_and_nothing_else(audit):
    assert names(audit, "noise") == ["noisy.png"]
    assert names(audit, "jpeg") == ["recompressed.png"]
    assert names(audit, "block") == ["block.png"]
    assert names(audit, "small") == ["small.png"]
    assert names(audit, "duplicate") == ["good00.png"]  # the copy comes first by name
    assert [row["name"] for row in audit.unreadable] == ["broken.png"]
    assert audit.ignored == 1
    assert len(audit.clean_names()) == 19 + 1 + 1  # good ones, the copy's first, the small one
    verdict = audit.verdict()
    assert "Of 26 pictures" in verdict
    assert "1 cannot be read" in verdict


def test_the_folder_stays_as_it_is(folder):
    before = checksums(folder)
    audit_data(str(folder), workers=1)
    assert checksums(folder) == before


def test_several_processes_find_the_same(folder, audit):
    several = audit_data(str(folder), size=128, workers=2)
    assert list(several.rows()) == list(audit.rows())


def test_an_interrupted_audit_goes_on_and_finds_the_same(folder, audit, tmp_path, monkeypatch):
    measured = []
    measure = scanning.measure_file

    def counted(data, settings):
        measured.append(len(data))
        return measure(data, settings)

    monkeypatch.setattr(scanning, "measure_file", counted)
    file = tmp_path / "out/scan.jsonl"
    told = {"size": 128, "workers": 1, "scan_file": file}
    first = list(audit_data(str(folder), **told).rows())
    assert first == list(audit.rows())
    total = len(measured)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:10]) + lines[10][:20])  # killed in the middle of a row
    assert list(audit_data(str(folder), **told).rows()) == first
    assert len(measured) == total + total - 9
    Image.fromarray(texture(seed=77)).save(folder / "good05.png")
    audit_data(str(folder), **told)
    assert len(measured) == 2 * total - 9 + 1  # only what has changed
    audit_data(str(folder), **{**told, "size": 64})
    assert len(measured) == 3 * total - 9 + 1  # other settings: everything


def test_a_damaged_file_of_rows_is_made_again(folder, audit, tmp_path):
    file = tmp_path / "scan.jsonl"
    for damage in (b"", b"nonsense\n", b"[]\n", b'{"scan": 1}\n{"a": 2}\n'):
        file.write_bytes(damage)
        again = audit_data(str(folder), size=128, workers=1, scan_file=file)
        assert list(again.rows()) == list(audit.rows())


def test_rows_are_read_by_training(folder, audit, tmp_path):
    file = tmp_path / "audit.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in audit.rows()))
    levels = read_levels(file, len(audit), 1)
    index = {name: number for number, name in enumerate(audit.names)}
    assert levels.level[index["noisy.png"]] == pytest.approx(2 * 40 / 255, rel=0.15)
    assert levels.usable_from[index["noisy.png"]] == levels.level[index["noisy.png"]]
    assert levels.usable_from[index["block.png"]] == np.inf
    assert levels.usable_from[index["recompressed.png"]] > 0
    assert levels.usable_from[index["good07.png"]] == 0
    shuffled = ["noisy.png", "good07.png", "mine.png", "good00.png", "recompressed.png"]
    rows = read_data_audit(file, shuffled, trusted=[2])
    assert rows.levels.level[0] == levels.level[index["noisy.png"]]
    assert rows.levels.trusted.tolist() == [False, False, True, False, False]
    assert rows.left_out.tolist() == [False, False, False, True, False]
    assert rows.tags == ["noisy", "", "", "", "jpeg artifacts"]
    with pytest.raises(InputError, match=r"no row for 1 of 1 samples \(new.png\)"):
        read_data_audit(file, ["new.png"], trusted=[])


def test_built_in_data_and_tables_are_audited_too():
    digits = audit_data("digits", limit=60, workers=1)
    assert len(digits) == 60
    assert digits.not_measured["captions"] == "there are none"
    assert "laid out alike" in digits.not_measured["mark"]
    assert len(audit_data("scenes", limit=40, workers=1)) == 40


# ------------------------------------------------------------------ the command


def test_the_command_writes_a_page_rows_and_numbers(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = ["audit", "data", "--size=128", "--workers=1", "--write-list=clean.txt"]
    assert latent_robust(told) == 0
    printed = capsys.readouterr().out
    assert "1 cannot be read" in printed
    page = (tmp_path / "data-audit/audit.html").read_text()
    assert "recompressed.png" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing else
    rows = (tmp_path / "data-audit/audit.jsonl").read_text().splitlines()
    assert [json.loads(row)["index"] for row in rows] == list(range(26))
    summary = json.loads((tmp_path / "data-audit/summary.json").read_text())
    assert summary["findings"]["noise"]["count"] == 1
    assert summary["verdict"] in printed
    assert "good03.png" in (tmp_path / "clean.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("limit", "code"),
    [("0.5", 0), ("0.1", 3), ("jpeg=0.5,noise=0.5", 0), ("jpeg=0", 3), ("duplicate=0.01", 3)],
)
def test_scripts_learn_whether_there_is_too_much_dirt(folder, tmp_path, monkeypatch, limit, code):
    monkeypatch.chdir(tmp_path)
    assert latent_robust(["audit", "data", "--workers=1", f"--fail-on={limit}"]) == code


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "no such folder"),
        (["data", "--fail-on=jpg=0.1"], "no check 'jpg'"),
        (["data", "--fail-on=2"], "lies in 0 .. 1"),
        (["data", "--fail-on=much"], "needs a share such as 0.1"),
        (["data", "--size=0"], "whole number >= 1"),
        (["data", "--out=data/notes.md"], "is a file"),
        (["data", "--caption-column=words"], "there is none"),
    ],
)
def test_what_is_wrong_is_said(folder, tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    assert latent_robust(["audit", *args, "--workers=1"]) == 2
    assert said in capsys.readouterr().err
