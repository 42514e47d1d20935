"""A data set is audited as it is stored: nothing is changed, everything is accounted for."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from latent_robust.audit import audit_data, read_data_audit, read_levels
from latent_robust.audit.pictures import scan as scanning
from latent_robust.audit.pictures.texts import find_problems
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
    assert "1 unreadable" in verdict


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
    Image.fromarray(texture(seed=78)).save(folder / "a new one.png")  # comes first by name
    audit_data(str(folder), **told)
    assert len(measured) == 2 * total - 9 + 2  # only what has changed
    audit_data(str(folder), **{**told, "size": 64})
    assert len(measured) == 3 * total - 9 + 3  # other settings: everything


def test_a_damaged_file_of_rows_is_made_again(folder, audit, tmp_path):
    file = tmp_path / "scan.jsonl"
    for damage in (b"", b"nonsense\n", b"[]\n", b'{"scan": 1}\n{"a": 2}\n'):
        file.write_bytes(damage)
        again = audit_data(str(folder), size=128, workers=1, scan_file=file)
        assert list(again.rows()) == list(audit.rows())


def test_rows_are_read_by_training(folder, audit, tmp_path):
    file = tmp_path / "audit.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in audit.rows()))
    some = ["noisy.png", "good07.png", "mine.png", "good00.png", "recompressed.png", "block.png"]
    rows = read_data_audit(file, some, trusted=[2])
    level, least = rows.levels.level, rows.levels.usable_from
    assert level[0] == pytest.approx(2 * 40 / 255, rel=0.15)
    assert not level[1:].any()
    assert least[:3].tolist() == [level[0], 0, 0]
    assert least[4] > 0
    assert least[3] == least[5] == np.inf
    assert rows.levels.trusted.tolist() == [False, False, True, False, False, False]
    assert rows.left_out.tolist() == [False, False, False, True, False, False]
    assert rows.tags == ["noisy", "", "", "", "jpeg artifacts", "missing part"]
    with pytest.raises(InputError, match="give it as --audit"):
        read_levels(file, len(audit), 1)
    with pytest.raises(InputError, match=r"no row for 1 of 1 samples \(new.png\)"):
        read_data_audit(file, ["new.png"], trusted=[])


@pytest.mark.parametrize("size", [(1, 1), (3, 11), (11, 3), (5, 40), (400, 4)])
def test_odd_sizes_are_measured(tmp_path, size):
    for number in range(3):
        values = rng(number).integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    found = audit_data(str(tmp_path), size=8, workers=1)
    assert found.unreadable == []


def test_what_cannot_be_measured_does_not_end_the_audit(folder, monkeypatch):
    monkeypatch.setattr(scanning, "measure", lambda *_: 1 / 0)
    found = audit_data(str(folder), workers=1)
    assert len(found.unreadable) == len(found)
    assert "ZeroDivisionError" in found.unreadable[0]["reason"]
    assert found.verdict() == "None of the 26 pictures can be read."


def test_a_picture_counts_also_without_a_usable_caption(folder):
    (folder / "good03.txt").write_bytes(b"\xff\xfe broken")
    (folder / "orphan.txt").write_text("a caption of nothing")
    found = audit_data(str(folder), workers=1)
    assert len(found) == 26
    assert "good03.png" in names(found, "caption_empty")
    assert [row["name"] for row in found.refused] == ["orphan.txt"]


def test_noise_counts_as_it_is_left_at_the_size_of_training(tmp_path):
    noise = 40 * rng().normal(size=(128, 128, 3))
    Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    full, reduced = (audit_data(str(tmp_path), size=size, workers=1).level for size in (128, 32))
    assert reduced[0] == pytest.approx(full[0] * 2 / (3 * 4), rel=1e-3)


def test_a_picture_that_was_saved_well_after_it_was_saved_badly(tmp_path):
    bad = np.asarray(as_jpeg(texture(), 20))
    as_jpeg(bad, 95).save(tmp_path / "a.jpg", quality=95)
    assert names(audit_data(str(tmp_path), workers=1), "jpeg") == ["a.jpg"]


def test_one_caption_for_all_is_said():
    captions = ["a photo of sks dog"] * 30
    assert all("identical" in found for found in find_problems(captions))


def test_a_new_mark_is_scored_without_measuring_anew(tmp_path, monkeypatch):
    data, file = tmp_path / "data", tmp_path / "scan.jsonl"
    data.mkdir()
    for number in range(40):
        picture = texture(64, seed=number).astype(float)
        if number % 2:
            picture[30:34, 10:50] = 0.3 * picture[30:34, 10:50] + 0.7 * 255
        Image.fromarray(picture.round().astype(np.uint8)).save(data / f"{number:02d}.png")
    marked = {f"{number:02d}.png" for number in range(1, 40, 2)}
    told = {"workers": 1, "scan_file": file}
    assert set(names(audit_data(str(data), **told), "mark")) >= marked
    measured = []
    measure = scanning.measure_file
    monkeypatch.setattr(
        scanning, "measure_file", lambda *given: measured.append(1) or measure(*given)
    )
    Image.fromarray(texture(64, seed=99)).save(data / "new.png")
    assert set(names(audit_data(str(data), **told), "mark")) >= marked
    assert len(measured) == 1


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
    assert "1 unreadable" in printed
    page = (tmp_path / "data-audit/audit.html").read_text()
    assert "recompressed.png" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing else
    rows = (tmp_path / "data-audit/audit.jsonl").read_text().splitlines()
    assert [json.loads(row)["index"] for row in rows] == list(range(26))
    summary = json.loads((tmp_path / "data-audit/summary.json").read_text())
    assert summary["findings"]["noise"]["count"] == 1
    assert summary["verdict"] in printed
    assert "good03.png" in (tmp_path / "clean.txt").read_text().splitlines()


def test_names_of_any_kind_are_shown_and_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for number, name in enumerate((b"<!--<script>alert(1)", b"bad\xff", b"a & b")):
        path = os.fsencode(tmp_path / "data") + b"/" + name + b".png"
        with open(path, "wb") as file:
            Image.fromarray(texture(64, seed=number)).save(file, "PNG")
    told = ["audit", "data", "--size=512", "--workers=1", "--write-list=clean.txt"]
    assert latent_robust(told) == 0
    page = (tmp_path / "data-audit/audit.html").read_text()
    assert "<!--<script>" not in page
    assert b"bad\xff.png" in (tmp_path / "clean.txt").read_bytes()


def test_the_audit_of_other_data_is_not_overwritten(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert latent_robust(["audit", "data", "--workers=1"]) == 0
    assert latent_robust(["audit", str(folder), "--workers=1"]) == 0  # the same, once more
    told = ["audit", "digits", "--limit=20", "--workers=1", "--out=data-audit"]
    assert latent_robust(told) == 2
    assert "has the audit of" in capsys.readouterr().err


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
