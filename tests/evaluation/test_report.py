import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from latent_robust.errors import InputError
from latent_robust.evaluation.charts import (
    _gate_curve,
    _radius_curve,
    _smooth,
    audit_charts,
    schedule_charts,
    training_charts,
    validation_charts,
)
from latent_robust.evaluation.figures import (
    Curve,
    curves_svg,
    image_grid,
    save_grid,
)
from latent_robust.evaluation.lora_files import lora_files
from latent_robust.evaluation.report import metrics_text, write_report
from latent_robust.evaluation.runs import noise_level, read_runs, wall_seconds
from latent_robust.evaluation.tables import (
    configuration_table,
    duration,
    metrics_table,
    number,
    select_columns,
)

RESULT = {
    "pixels": {"frechet": 2.0, "kid": 0.01, "kid_std": 0.002, "precision": 0.5, "recall": 0.6},
    "residual_noise": 0.4,
    "residual_noise_reference": 0.3,
    "nearest_distance": 3.0,
    "samples": 1000,
    "reference": 1797,
}


def make_run(folder: Path, frechet: float, noise: float, **config) -> Path:
    config = {
        "objective": "robust-adversarial", "data": "digits",
        "contamination": ["gaussian:fraction=0.9,sigma=0.2"], "steps": 100, "seed": 0,
        "weighting": "band", "band": 0.5, "rho": 2.0,
    } | config  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    metrics = RESULT | {"pixels": RESULT["pixels"] | {"frechet": frechet}, "residual_noise": noise}
    floors = {"training set": RESULT | {"residual_noise": 0.5}}
    (folder / "metrics.json").write_text(
        json.dumps({"seconds": 90.0, "metrics": metrics, "floors": floors})
    )
    rows = [{"step": i, "denoising": 1 / i, "penalty": 2 / i} for i in range(1, 101)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i, name in enumerate(("training", "clean", "final", "step-50", "step-100")):
        value = frechet / 10 if name == "final" else i / 10
        save_grid(torch.full((4, 1, 8, 8), value), folder / "samples" / f"{name}.png")
    return folder


@pytest.fixture
def two_runs(tmp_path):
    return [
        make_run(tmp_path / "plain", 2.0, 0.2, objective="ddpm"),
        make_run(tmp_path / "robust", 1.0, 0.31),
    ]


def test_report_is_one_file_that_needs_nothing_else(two_runs, tmp_path):
    out = write_report(two_runs, tmp_path / "new" / "report.html")
    page = out.read_text()
    assert re.search(r"https?://|<script|<link|url\((?!#)|src=\"(?!data:)", page) is None
    assert all(name in page for name in ("ddpm", "robust-adversarial", "training set"))
    assert len(re.findall("<svg role=", page)) == 4  # loss, penalty, radius, gate
    # training and clean once, both final grids, two stages of each run
    assert len(re.findall("<img ", page)) == 2 + 2 + 4
    assert len(re.findall('<img [^>]*alt="[^"]+"', page)) == 8


def test_the_verdict_comes_first_on_the_page_and_on_the_terminal(two_runs, tmp_path):
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    heading = re.search("<h1>(.*?)</h1>", page)
    headline = "robust-adversarial is 50 % nearer to clean images than ddpm (plain training)"
    assert heading[1] == headline.replace(" %", "\N{NO-BREAK SPACE}%")
    assert re.search("<(p|img|table|section)", page[: heading.start()]) is None
    assert metrics_text(two_runs).startswith(headline + "; residual noise 0.31 against 0.20")


def test_report_of_the_same_runs_is_the_same_file(two_runs, tmp_path):
    pages = [write_report(two_runs, tmp_path / name).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_a_run_with_only_a_configuration_is_reported(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("objective: ddpm\nsteps: 10\n")
    page = write_report([tmp_path / "begun"], tmp_path / "report.html").read_text()
    assert "begun" in page
    assert "<img" not in page
    assert "ddpm" in page


def test_what_a_run_says_is_not_taken_for_markup(tmp_path):
    run = make_run(tmp_path / "a<b>&", 1.0, 0.3, data="<script>alert(1)</script>")
    page = write_report([run], tmp_path / "report.html", title="<i>").read_text()
    assert "<script>" not in page
    assert "a<b>" not in page
    assert "<i>" not in page


def test_best_is_least_most_or_nearest_to_the_clean_noise(two_runs):
    columns, rows = metrics_table(read_runs(two_runs))
    best = {
        column.title: [row.name for row in rows if row.cells[i].best]
        for i, column in enumerate(columns)
    }
    assert best == {
        "FD": ["robust-adversarial"],
        "KD": [],  # the rest of these are ties
        "precision": [],
        "recall": [],
        "noise": ["robust-adversarial"],
        "nearest": [],
        "wall time": [],
    }
    assert [row.name for row in rows] == ["ddpm", "robust-adversarial", "training set"]
    assert [row.series for row in rows] == [0, 1, None]


def test_values_that_show_the_same_digits_are_a_tie(tmp_path):
    runs = [
        make_run(tmp_path / "plain", 1.0041, 0.31, objective="ddpm"),
        make_run(tmp_path / "robust", 1.0042, 0.29),
    ]
    _, rows = metrics_table(read_runs(runs))
    assert [row.cells[0].text for row in rows[:2]] == ["1.00", "1.00"]
    # 0.31 and 0.29 are as far from 0.3, but do not look alike; rounding may prefer either.
    assert not any(row.cells[0].best for row in rows)


def test_titles_say_what_is_better(two_runs):
    columns, _ = metrics_table(read_runs(two_runs))
    arrows = {column.title: column.arrow for column in columns}
    assert arrows == {
        "FD": "\u2193", "KD": "\u2193", "precision": "\u2191", "recall": "\u2191",
        "noise": "\u2248 0.300", "nearest": "", "wall time": "",
    }  # fmt: skip


def test_the_front_table_has_one_distance_in_the_headline_space(two_runs):
    for folder in two_runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        for result in (metrics["metrics"], *metrics["floors"].values()):
            result["digits"] = result["pixels"] | {"frechet": 7.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    columns, rows = metrics_table(read_runs(two_runs))
    front, front_rows = select_columns(columns, rows, lambda column: column.front)
    assert [(c.span, c.name) for c in front] == [
        ("digit network", "Fréchet distance"),
        ("images", "residual noise"),
        ("cost", "wall time"),
    ]
    assert [cell.text for cell in front_rows[1].cells] == ["7.00", "0.310", "1.5 min"]
    assert [c.span for c in columns[4:8]] == ["pixels"] * 4  # behind


def without_reference(folder: Path, **config) -> Path:
    """A run on a user's own dirty images."""
    make_run(folder, 1.0, 0.31, contamination="", **config)
    (folder / "samples" / "clean.png").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["floors"]
    (folder / "metrics.json").write_text(json.dumps(metrics | {"compared_with": "training"}))
    return folder


def test_a_report_without_reference_claims_none(tmp_path):
    runs = [
        without_reference(tmp_path / "plain", objective="ddpm"),
        without_reference(tmp_path / "robust"),
    ]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Measured against the training images" in page
    assert "No clean reference was given" in page
    assert "Nothing is marked as best" in page
    assert "is better" not in page
    assert "Gray rows" not in page
    assert "<strong" not in page
    claims = re.findall(r"[^.>]*\bclean\b[^.<]*", page, re.IGNORECASE)
    assert [claim.strip() for claim in claims] == [
        "nothing clean to measure against: look at the images",
        "No clean reference was given (--reference), so distances are to the training images: a "
        "small one may mean that the dirt was learned",
    ]
    assert "No clean reference was given" in metrics_text(runs)
    # A grid that an earlier evaluation left behind is not this one's reference.
    save_grid(torch.zeros(4, 1, 8, 8), runs[0] / "samples" / "clean.png")
    assert "Clean images" not in write_report(runs, tmp_path / "report.html").read_text()


def test_runs_with_and_without_reference_are_kept_apart(two_runs, tmp_path):
    runs = [*two_runs, without_reference(tmp_path / "own", objective="robust-random")]
    _, rows = metrics_table(read_runs(runs))
    assert [(row.name, row.note) for row in rows] == [
        ("ddpm", "against clean images"),
        ("robust-adversarial", "against clean images"),
        ("robust-random", "against its training images"),
        ("training set", "against clean images"),
    ]
    assert not any(cell.best for row in rows for cell in row.cells)
    page = write_report(runs, tmp_path / "report.html").read_text()
    # In the table in front and in the one with all measures.
    assert page.count("<small>against clean images</small>") == 2 * 3
    assert page.count("<small>against its training images</small>") == 2 * 1
    assert "Measured against clean or against training images" in page
    assert "of ddpm, robust-adversarial</p>" in page  # whose clean images these are
    assert "<strong" not in page
    assert "robust-random (against its training images)" in metrics_text(runs)


def test_runs_that_name_no_comparison_were_compared_with_clean_images(two_runs, tmp_path):
    before = write_report(two_runs, tmp_path / "report.html").read_text()
    assert "Measured against clean images" in before
    assert "No clean reference" not in before + metrics_text(two_runs)
    for folder in two_runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"compared_with": "clean"}))
    assert write_report(two_runs, tmp_path / "report.html").read_text() == before


@pytest.mark.parametrize("place", ["file/report.html", "folder", "x" * 300])
def test_an_unusable_place_is_a_message(two_runs, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for write in (
        lambda path: write_report(two_runs, path),
        lambda path: save_grid(torch.zeros(1, 1, 4, 4), path),
    ):
        with pytest.raises(InputError, match=r"cannot write .* Choose a place"):
            write(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_files(two_runs, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    page, grid = tmp_path / "report.html", two_runs[0] / "samples" / "final.png"
    write_report(two_runs, page)
    before = page.read_bytes(), grid.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_report(two_runs[:1], page)
    with pytest.raises(InputError, match="No space left"):
        save_grid(torch.zeros(1, 1, 4, 4), grid)
    assert (page.read_bytes(), grid.read_bytes()) == before


def test_differing_keys_are_found(two_runs):
    table = configuration_table(read_runs(two_runs))
    assert [key for key, _, differs in table if differs] == ["objective"]


def test_runs_are_named_by_objective_or_apart(two_runs, tmp_path):
    assert [run.name for run in read_runs(two_runs)] == ["ddpm", "robust-adversarial"]
    runs = [make_run(tmp_path / f"seed-{seed}" / "ddpm", 1.0, 0.3) for seed in (0, 1)]
    assert [run.name for run in read_runs(runs)] == ["seed-0/ddpm", "seed-1/ddpm"]


def test_directories_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.yaml"):
        read_runs([tmp_path])
    with pytest.raises(InputError, match="at least one"):
        read_runs([])


def test_killed_log_and_quarantine_are_read(tmp_path):
    run = make_run(tmp_path / "run", 1.0, 0.3)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 101, "deno')
    (run / "quarantine.jsonl").write_text('{"path": "a"}\n{"path": "b"}\n')
    (loaded,) = read_runs([run])
    assert len(loaded.log) == 100
    assert loaded.quarantined == 2
    assert [step for step, _ in loaded.stages] == [50, 100]
    assert "2 bad files" in write_report([run], tmp_path / "report.html").read_text()


def test_noise_level_is_in_units_of_the_data():
    assert noise_level({"contamination": ["blur:fraction=0.1,sigma=3"]}) is None
    assert noise_level({"contamination": ["gaussian:fraction=0.9,sigma=0.2"]}) == 0.4
    assert noise_level({"contamination": ["gaussian:fraction=0.9,sigma=0.0-0.3"]}) == 0.6
    assert noise_level({"contamination": "gaussian:fraction=0.9,sigma=2e-1"}) == 0.4
    assert noise_level({"contamination": None}) is None
    assert noise_level({}) is None


def test_noise_level_of_a_mixture():
    gaussian, blur = "gaussian:fraction=0.9,sigma=0.2", "blur:fraction=0.1,sigma=1"
    for mixture in (f"{gaussian}; {blur}", f"{blur};{gaussian}", f"jpeg:quality=9; {gaussian}"):
        assert noise_level({"contamination": mixture}) == 0.4
        assert noise_level({"contamination": [mixture, blur]}) == 0.4
    assert noise_level({"contamination": f"{blur}; jpeg:fraction=1,quality=9"}) is None
    twice = "gaussian:fraction=1,sigma=0.3; gaussian:fraction=1,sigma=0.1-0.4"
    # Variances add: 2 (0.3^2 + 0.4^2)^(1/2), but for rounding.
    assert noise_level({"contamination": twice}) == pytest.approx(1)


def test_smoothing_keeps_a_constant_and_bounds_the_points():
    x, y = _smooth([{"step": i, "loss": 0.5} for i in range(10_000)], "loss")
    assert set(y) == {0.5}
    assert len(x) == len(y) <= 120
    assert _smooth([{"step": 1, "loss": float("nan")}, {"step": 2}], "loss") == ([], [])


def test_the_audit_of_a_run_is_shown_with_its_boundary(two_runs):
    assert audit_charts(read_runs(two_runs)) == []
    rows = [{"score": 0.01 * (i + 1), "flagged": i >= 6} for i in range(10)]
    (two_runs[1] / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chart,) = audit_charts(read_runs(two_runs))
    assert "4 of 10 count as noisy" in chart.note
    assert "noisy above" in chart.svg


@pytest.mark.parametrize("config", [{"objective": "ddpm"}, {"weight": 0.0}])
def test_plain_training_has_no_radius(tmp_path, config):
    run = make_run(tmp_path / "plain", 1.0, 0.3, **config)
    assert [chart.title for chart in training_charts(read_runs([run]))] == [
        "Denoising loss",
        "Penalty",
    ]
    assert schedule_charts(read_runs([run])) == []
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "Where the regularizer acts" not in page


def test_charts_of_radius_and_gate_are_folded(two_runs, tmp_path):
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    folded = page.split("<summary>Where the regularizer acts</summary>")[1].split("</details>")[0]
    assert "<h3>Radius</h3>" in folded
    assert "<h3>Gate</h3>" in folded


@pytest.mark.parametrize("parameterization", ["epsilon", "v_prediction", "sample", "flow"])
def test_radius_and_gate_are_those_of_the_process(tmp_path, parameterization):
    config = {"bias_min": 0.1, "bias_max": 0.3, "band": 0.5, "rho": 3.0}
    folder = make_run(tmp_path / "run", 1.0, 0.3, parameterization=parameterization, **config)
    (run,) = read_runs([folder])
    radius, gate = _radius_curve(run, 0), _gate_curve(run, 0)
    for i in (0, 60, 120, 199):
        s = radius.x[i]
        sigma = s / (1 + s) if parameterization == "flow" else s / (1 + s * s) ** 0.5
        # Powers and quotients in float32.
        assert radius.y[i] == pytest.approx(sigma**3 + 0.2, rel=1e-5)
        assert gate.y[i] == pytest.approx(min(1, (0.5 / s) ** 2), rel=1e-5)


def test_numbers_have_three_digits():
    written = [number(x) for x in (0.0, 12345.6, 123.45, 1.005, 0.04567, -0.00012, None)]
    assert written == ["0.00", "12,346", "123", "1.00", "0.0457", "\u22120.0001", "\u2013"]


def test_grid_shows_each_image_enlarged_and_exact():
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    grid = image_grid(images, columns=2, scale=3)
    gutter = 1
    assert grid.size == (2 * 12 + gutter, 2 * 12 + gutter)
    assert [grid.getpixel(p)[0] for p in ((0, 0), (11, 11), (13, 0), (0, 13))] == [0, 0, 128, 255]
    assert grid.getpixel((24, 24)) == (128, 128, 128)  # an empty place is gutter


def test_grid_refuses_what_is_no_image():
    with pytest.raises(InputError, match="shape"):
        image_grid(torch.zeros(2, 5, 4, 4))


def test_curves_take_the_colours_of_the_page():
    svg = curves_svg([Curve("a", [1, 2], [3, 4], 1)], xlabel="step", description='"a" & b')
    assert svg.startswith('<svg role="img" aria-label="&quot;a&quot; &amp; b"')
    assert "var(--series-1)" in svg
    assert re.search("#0[0-9a-f]{5}", svg) is None


PROMPTS = ["a red circle", "a <b>blue</b> star", ""]


def make_latent_run(folder: Path, both: float, clip: float, **config) -> Path:
    """What finetune-latent leaves: grids with a column for each prompt, captions measured."""
    make_run(folder, 1.0, 0.3, **({"model": "demo", "lora": True} | config))
    samples = folder / "samples"
    for stale in samples.glob("step-*.png"):
        stale.unlink()
    for i, name in enumerate(("training", "clean", "final", "step-00000000", "step-00000100")):
        value = both if name == "final" else i / 10
        save_grid(torch.full((6, 3, 128, 128), value), samples / f"{name}.png", len(PROMPTS))
    (samples / "prompts.json").write_text(json.dumps(PROMPTS))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {
        "match": {"color": 0.9, "shape": 0.8, "both": both},
        "clip": {"model": "open_clip tiny", "clip_score": clip, "clip_cosine": clip / 100},
        "cost": {"seconds_per_step": 0.5, "device": "cpu"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    bins = ("t 0-250", "t 250-500", "t 500-750", "t 750-1000", "loss")
    rows = [{"step": s, **{f"validation/{b}": 1 / s for b in bins}} for s in (50, 100)]
    with (folder / "log.jsonl").open("a") as log:
        log.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def latent_runs(tmp_path):
    return [
        make_latent_run(tmp_path / "latent" / "plain", 0.6, 25.0, objective="ddpm"),
        make_latent_run(tmp_path / "latent" / "robust", 0.7, 28.0),
    ]


def test_captions_are_columns_of_the_table(latent_runs):
    columns, rows = metrics_table(read_runs(latent_runs))
    assert [(c.span, c.title) for c in columns[-7:]] == [
        *(("match", name) for name in ("color", "shape", "both")),
        ("CLIP", "score"),
        ("CLIP", "cosine"),
        ("cost", "wall time"),
        ("cost", "seconds per step"),
    ]
    texts = [[cell.text for cell in row.cells[-7:]] for row in rows]
    assert texts == [
        ["0.900", "0.800", "0.600", "25.0", "0.250", "1.5 min", "0.500"],
        ["0.900", "0.800", "0.700", "28.0", "0.280", "1.5 min", "0.500"],
        ["\u2013"] * 7,
    ]
    best = [[cell.best for cell in row.cells[-5:-2]] for row in rows]
    assert best == [[False] * 3, [True] * 3, [False] * 3]
    text = metrics_text(latent_runs)
    assert "both (match)" in text
    assert "score (CLIP)" in text


def test_captions_need_no_reference(latent_runs, tmp_path):
    for folder in latent_runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["metrics"], metrics["floors"]
        (folder / "metrics.json").write_text(json.dumps(metrics))
    columns, rows = metrics_table(read_runs(latent_runs))
    assert {c.span for c in columns} == {"match", "CLIP", "cost"}
    assert [row.cells[2].best for row in rows] == [False, True]
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    assert "Measured against captions" in page
    assert "Distances" not in page
    assert "share of the generated images that show what their captions say" in page
    assert "in the features of open_clip tiny;" in page


def test_an_audited_run_costs_its_auditor_as_well(tmp_path):
    out = tmp_path / "audited"
    config = {"objective": "audited", "auditor": "robust-adversarial"}
    folders = [make_run(out, 1.0, 0.3, **config), make_run(out / "robust-adversarial", 1.0, 0.3)]
    audited, auditor = read_runs(folders)
    assert wall_seconds(auditor, [audited, auditor]) == 90
    assert wall_seconds(audited, [audited, auditor]) == 180
    assert wall_seconds(audited, [audited]) is None  # the auditor's time is not known
    (base,) = read_runs([make_run(tmp_path / "base", 1.0, 0.3, **config | {"auditor": "base"})])
    assert wall_seconds(base, [base]) == 90


def test_durations_are_in_a_readable_unit():
    written = [duration(x) for x in (0.4, 59.4, 60, 3599, 7200, None)]
    assert written == ["0 s", "59 s", "1.0 min", "60.0 min", "2.0 h", "\u2013"]


def test_prompts_stand_above_the_columns_of_each_run(latent_runs, tmp_path):
    (latent_runs[1] / "samples" / "prompts.json").write_text('["a dog"]')
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    prompts = [
        (name, re.findall("<li>([^<]*)</li>", items))
        for name, items in re.findall(
            '<ol class="prompts" aria-label="Prompts of ([^"]*)">(.*?)</ol>', page, re.DOTALL
        )
    ]
    assert prompts == [
        ("ddpm", ["a red circle", "a &lt;b&gt;blue&lt;/b&gt; star", "(no words)"]),
        ("robust-adversarial", ["a dog"]),
    ]
    # two stages of the run
    assert page.count("; one column for each prompt: a red circle, a &lt;b&gt;") == 2


def test_unreadable_prompts_are_named(latent_runs):
    for text, message in (("[1,", r"cannot read .*prompts\.json"), ("{}", "must hold a list")):
        (latent_runs[0] / "samples" / "prompts.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_runs(latent_runs)


def test_large_grids_stand_in_pairs_with_the_data_first(latent_runs, two_runs, tmp_path):
    titles = "<figcaption><h3>([^<]*)"
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    assert re.findall(titles, page) == [
        "Training data", "Clean images", "ddpm", "robust-adversarial"
    ]  # fmt: skip
    assert '<div class="grids large">' in page
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    assert re.findall(titles, page) == [
        "Training data", "ddpm", "robust-adversarial", "Clean images"
    ]  # fmt: skip
    assert '<div class="grids">' in page


def test_a_grid_too_wide_for_the_page_is_shrunk(latent_runs, tmp_path):
    save_grid(torch.rand(16, 3, 128, 128) * 2 - 1, latent_runs[0] / "samples" / "final.png", 16)
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    # 16 images and 15 gutters of one pixel are 2063 wide.
    assert re.findall(r'src="data:image/jpeg;[^>]*width="(\d+)" height="(\d+)"', page) == [
        ("1600", "99")
    ]


def test_a_run_under_way_shows_its_last_images(latent_runs, tmp_path):
    (latent_runs[0] / "samples" / "final.png").unlink()
    page = write_report(latent_runs[:1], tmp_path / "report.html").read_text()
    assert "at step 100</p>" in page


def test_validation_has_a_chart_for_each_bin_in_order(latent_runs, two_runs):
    titles = [chart.title for chart in validation_charts(read_runs(latent_runs))]
    assert titles == ["all times", *(f"t {b}" for b in (
        "0\u2013250", "250\u2013500", "500\u2013750", "750\u20131000"))]  # fmt: skip
    # Rows that hold only a validation do not disturb the other curves.
    usual = [chart.svg for chart in training_charts(read_runs(two_runs))]
    assert [chart.svg for chart in training_charts(read_runs(latent_runs))] == usual
    assert validation_charts(read_runs(two_runs)) == []


def test_the_level_of_images_is_not_marked_among_latents(latent_runs, two_runs):
    assert "contamination, 0.4" in schedule_charts(read_runs(two_runs))[-1].svg
    latent = schedule_charts(read_runs(latent_runs))[-1].svg
    assert "contamination" not in latent
    assert "in units of latents" in latent


def distinct(count: int, side: int, channels: int = 1, shift: float = 0.0) -> torch.Tensor:
    """Images of one gray level each, all different."""
    levels = torch.linspace(-1, 0.5, count) + shift
    return levels.reshape(-1, 1, 1, 1).expand(-1, channels, side, side)


def read_images(text: str) -> list[np.ndarray]:
    """Of all <img> in this HTML."""
    data = re.findall(r'<img src="data:image/\w+;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d)))) for d in data]


def test_images_from_the_same_noise_are_shown_in_pairs_and_exact(two_runs, tmp_path):
    sets = [distinct(36, 8), distinct(36, 8, shift=0.25)]
    for folder, images in zip(two_runs, sets, strict=True):
        settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"size": 8, "seed": 3}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        save_grid(images, folder / "samples" / "final.png", 6)
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    section = page.split("The same noise, side by side")[1].split("</section>")[0]
    assert re.findall("<h3>([^<]*)</h3>", section) == ["ddpm", "robust-adversarial"]
    expected = [((images[:8] + 1) * 127.5).round().to(torch.uint8) for images in sets]
    for shown, image in zip(read_images(section), torch.cat(expected), strict=True):
        assert (shown == image[0, :, :, None].numpy()).all()
    assert section.count("<img ") == section.count('class="small"') == 16


def test_images_from_other_noise_are_not_paired(two_runs, tmp_path):
    for seed, folder in enumerate(two_runs):
        settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"size": 8, "seed": seed}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    assert "The same noise" not in page


@pytest.mark.parametrize("side, small", [(8, True), (32, True), (64, False)])
def test_only_small_images_are_not_smoothed(two_runs, tmp_path, side, small):
    for folder in two_runs:
        with (folder / "config.yaml").open("a") as file:
            file.write(f"size: {side}\n")
    page = write_report(two_runs, tmp_path / "report.html").read_text()
    assert ('class="small"' in page) == small
    assert ".small { image-rendering: pixelated; }" in page


def test_a_wide_grid_of_small_images_is_reduced_without_mixing_pixels(latent_runs, tmp_path):
    (folder,) = latent_runs[:1]
    with (folder / "config.yaml").open("a") as file:
        file.write("resolution: 32\n")
    save_grid(distinct(40, 32, 3), folder / "samples" / "final.png", 40)
    original = np.asarray(Image.open(folder / "samples" / "final.png"))
    assert original.shape[1] > 1600
    page = write_report([folder], tmp_path / "report.html").read_text()
    (shown,) = [image for image in read_images(page) if image.shape[1] == 1600]
    assert set(np.unique(shown)) <= set(np.unique(original))


def test_captions_stand_below_their_images(latent_runs, tmp_path):
    captions = ["a red circle", "a <b>blue</b> star", ""]
    for folder in latent_runs:
        with (folder / "config.yaml").open("a") as file:
            file.write("resolution: 128\n")
        metrics = json.loads((folder / "metrics.json").read_text()) | {"captions": captions * 2}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    cards = page.split('<div class="card">')[1:]
    assert len(cards) == 6
    for card, caption in zip(
        cards, ["a red circle", "a &lt;b&gt;blue&lt;/b&gt; star", "(no words)"] * 2, strict=True
    ):
        assert f'<p class="caption">{caption}</p>' in card
        assert card.count("<img ") >= 2
    alone = write_report(latent_runs[:1], tmp_path / "report.html").read_text()
    assert alone.count('<div class="card">') == 6  # captions are worth showing without a pair


def test_lora_files_come_with_a_line_each_and_the_code_that_loads_them(latent_runs, tmp_path):
    robust = latent_runs[1]
    files = ["pytorch_lora_weights.safetensors", "lora_kohya.safetensors"]
    for folder in latent_runs:
        for file in files:
            (folder / file).write_bytes(b"")
    metrics = json.loads((robust / "metrics.json").read_text())
    metrics |= {"verified": {files[0]: 0.0}, "pipeline": "StableDiffusionXLPipeline"}
    (robust / "metrics.json").write_text(json.dumps(metrics))
    settings = yaml.safe_load((robust / "config.yaml").read_text())
    for model, line in (
        ("an/sdxl", 'from_pretrained("an/sdxl")'),
        ("xl.safetensors", 'from_single_file("xl.safetensors")'),
    ):
        (robust / "config.yaml").write_text(yaml.safe_dump(settings | {"model": model}))
        (first, second) = lora_files(read_runs(latent_runs))
        assert second.snippet.splitlines() == [
            "from diffusers import StableDiffusionXLPipeline",
            f"pipeline = StableDiffusionXLPipeline.{line}",
            f'pipeline.load_lora_weights("{robust.resolve()}")',
        ]
    assert "verified" in second.files[0][1]
    assert "verified" not in second.files[1][1]
    assert "ComfyUI: copy it to models/loras; for A1111: to models/Lora" in second.files[1][1]
    assert "load_demo_pipeline()" in first.snippet
    page = write_report(latent_runs, tmp_path / "report.html").read_text()
    section = page.split('<h2 id="lora">')[1].split("</section>")[0]
    # The run itself; then, folded, its baseline.
    assert section.index("StableDiffusionXLPipeline") < section.index("LoRA of ddpm")
    assert lora_files(read_runs([make_run(tmp_path / "pixel", 1.0, 0.3)])) == []
