import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from latent_robust import files
from latent_robust.audit import judge_network
from latent_robust.commands.main import main as latent_robust
from latent_robust.commands.train_pixel import main
from latent_robust.core import Levels, NoiseProcess
from latent_robust.data import open_images
from latent_robust.evaluation.runs import read_runs
from latent_robust.training.directory import OUTPUTS
from latent_robust.training.loop import Trainer
from pixel import output
from pixel.config import PixelConfig
from pixel.data import contaminated_images
from pixel.network import build_network
from pixel.tagged import CLEAN, DIRTY, DrawnAsClean, tags
from pixel.task import PixelTask

GRAY_8 = ("--size=8", "--channels=1")
NOISY = "--contamination=gaussian:fraction=0.9,sigma=0.2"


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_run_directory_holds_what_was_promised(finished_run):
    assert {
        "config.yaml",
        "manifest.jsonl",
        "log.jsonl",
        "metrics.json",
        "report.html",
        "samples/training.png",
        "samples/clean.png",
        "samples/final.png",
        "samples/step-00000002.png",
        "unet/diffusion_pytorch_model.safetensors",
        "checkpoints/step-00000004/manifest.json",
        "ddpm/metrics.json",
    } <= names(finished_run)
    written = {path.name for path in finished_run.iterdir()}
    assert written <= {*OUTPUTS, "config.yaml", "tensorboard", "ddpm"}
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["objective"] == "robust-adversarial"
    log = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all("penalty" in row for row in log)
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert set(metrics["metrics"]) >= {"pixels", "digits", "residual_noise"}
    report = (finished_run / "report.html").read_text()
    assert "ddpm" in report
    assert "robust-adversarial" in report


def test_its_own_configuration_repeats_it_bit_for_bit(finished_run, tmp_path):
    code = main(["--config", str(finished_run / "config.yaml"), "--out", str(tmp_path / "again")])
    assert code == 0
    weights = [
        load_file(run / "unet/diffusion_pytorch_model.safetensors")
        for run in (finished_run, tmp_path / "again")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_finished_run_is_neither_overwritten_nor_trained_again(finished_run, capsys):
    before = (finished_run / "log.jsonl").read_bytes()
    settings = ["--config", str(finished_run / "config.yaml"), "--out", str(finished_run)]
    assert main(settings) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*settings, "--resume"]) == 0
    assert main(["--resume", str(finished_run)]) == 0
    assert (finished_run / "log.jsonl").read_bytes() == before
    assert main(["--out", str(finished_run), "--resume", "--seed=5"]) == 2
    assert "seed: 0 in the saved run, 5 now" in capsys.readouterr().err


def test_a_stopped_run_needs_no_options_to_go_on(train, finished_run, tmp_path):
    """Its own configuration is the base; also when it stopped while the baseline was training."""
    run = tmp_path / "run"
    options = ["--contamination=gaussian:fraction=0.9,sigma=0.2", "--compare-with=ddpm", "--seed=0"]
    assert train(*options, "--out", str(run)) == 0
    for part in (run, run / "ddpm"):
        (part / "metrics.json").unlink()
        shutil.rmtree(part / "checkpoints/step-00000004")
    assert main(["--resume", str(run)]) == 0
    weights = [
        load_file(r / "unet/diffusion_pytorch_model.safetensors") for r in (finished_run, run)
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_without_clean_images_nothing_claims_to_be_clean(train, tmp_path):
    assert train("--out=run") == 0
    assert not (tmp_path / "run/samples/clean.png").exists()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["compared_with"] == "training"
    assert "floors" not in metrics
    assert train("--out=measured", "--reference=digits") == 0
    metrics = json.loads((tmp_path / "measured/metrics.json").read_text())
    assert metrics["compared_with"] == "clean"
    assert metrics["metrics"]["reference"] == 1797


def test_the_network_loads_in_diffusers(finished_run):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(finished_run / "unet")
    scheduler = DDPMScheduler.from_pretrained(finished_run / "scheduler")
    pipeline = DDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_commands_on_a_finished_run(finished_run, tmp_path, capsys):
    assert (
        latent_robust(
            [
                "sample",
                str(finished_run),
                "--count=4",
                "--steps=2",
                "--sampler=ddpm",
                "--out",
                str(tmp_path / "s.png"),
            ]
        )
        == 0
    )
    assert Image.open(tmp_path / "s.png").size[0] > 8
    capsys.readouterr()
    assert (
        latent_robust(
            ["evaluate", str(finished_run), "--samples=20", "--features=pixels", "--offline"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["pixels"]["frechet"] > 0
    assert (
        latent_robust(
            [
                "report",
                str(finished_run),
                str(finished_run / "ddpm"),
                "--out",
                str(tmp_path / "r.html"),
            ]
        )
        == 0
    )
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_contaminate_then_train_on_the_copy_and_evaluate_it(train, tmp_path, capsys):
    assert (
        latent_robust(
            [
                "contaminate",
                "--data=digits",
                "--contamination=jpeg:fraction=1,quality=30",
                "--size=8",
                "--channels=1",
                "--limit=40",
                "--out=dirty",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "dirty").glob("*.png"))) == 40
    assert train("--data=dirty", *GRAY_8, "--out=run") == 0
    capsys.readouterr()
    assert (
        latent_robust(
            [
                "evaluate",
                "dirty",
                "--reference=digits",
                "--size=8",
                "--channels=1",
                "--features=pixels",
            ]
        )
        == 0
    )
    # 40 recompressed digits are not all 1,797 clean ones, but they are digits.
    assert 0 < json.loads(capsys.readouterr().out)["pixels"]["frechet"] < 100


@pytest.mark.parametrize("option", ["v_prediction", "sample", "flow"])
def test_every_parameterization_trains_and_samples(train, option, tmp_path):
    assert train(f"--parameterization={option}", "--out=run") == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["metrics"]
    assert latent_robust(["sample", "run", "--count=2", "--steps=2", "--out=s.png"]) == 0


def test_ambient_takes_its_levels_from_a_file(train, tmp_path):
    rows = [json.dumps({"index": i, "level": 0.4 * (i % 2)}) for i in range(40)]
    (tmp_path / "levels.jsonl").write_text("\n".join(rows))
    assert train("--objective=ambient", "--levels=levels.jsonl", "--out=run") == 0


def test_an_audited_run_trains_its_auditor_first_and_on_the_levels_of_its_audit(
    train, tmp_path, capsys
):
    assert train(NOISY, "--objective=audited", "--auditor=ddpm", "--out=run") == 0
    auditor = yaml.safe_load((tmp_path / "run/ddpm/config.yaml").read_text())
    assert auditor["objective"] == "ddpm"
    rows = [json.loads(line) for line in (tmp_path / "run/audit.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(40))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["audit"]["flagged"] == sum(row["flagged"] for row in rows) > 0
    # `audit` repeats the audit, and training on its levels gives the same network.
    assert latent_robust(["audit", "run/ddpm", "--out=again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "run/audit.jsonl").read_text()
    args = ("--objective=ambient", "--levels=again.jsonl", "--init=run/ddpm")
    assert train(NOISY, *args, "--out=ambient") == 0
    networks = [
        load_file(tmp_path / run / "unet/diffusion_pytorch_model.safetensors")
        for run in ("run", "ambient")
    ]
    assert all(torch.equal(networks[0][k], networks[1][k]) for k in networks[0])
    assert latent_robust(["audit", "run/ddpm", "--out=again.jsonl"]) == 2
    assert "exists already" in capsys.readouterr().err


BLUR = "--contamination=blur:fraction=1,sigma=1"


@pytest.fixture
def quick_judges(monkeypatch):
    monkeypatch.setattr(judge_network, "STEPS", 2)


@pytest.mark.usefixtures("quick_judges")
def test_an_audited_run_judges_its_images_by_the_trusted_ones(train, tmp_path, capsys):
    args = ("--objective=audited", "--auditor=ddpm", "--trusted=spare:12")
    assert train(BLUR, *args, "--out=run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run/audit.jsonl").read_text().splitlines()]
    manifest = [json.loads(x) for x in (tmp_path / "run/manifest.jsonl").read_text().splitlines()]
    trusted = [not row["corruptions"] for row in manifest]
    assert sum(trusted) == 12
    assert [row["trusted"] for row in rows] == trusted
    assert not any(row["usable_from"] for row in rows if row["trusted"])
    assert "trusted" in capsys.readouterr().out
    # The audit can be repeated, by the command and by the run that goes on.
    assert latent_robust(["audit", "run/ddpm", "--out=again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "run/audit.jsonl").read_text()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["audit"]["trusted"] == 12


def test_dirty_images_can_be_a_class_that_is_not_generated(train, tmp_path):
    rows = [{"index": i, "level": 0, "usable_from": (0, 0.5, "never")[i % 3]} for i in range(40)]
    (tmp_path / "levels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ("--objective=ambient", "--levels=levels.jsonl", "--tag-dirt", "--learning-rate=0.05")
    assert train(*args, "--out=run") == 0
    weights = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    clean, dirty = weights["class_embedding.weight"]
    assert not torch.equal(clean, dirty)
    assert latent_robust(["sample", "run", "--count=4", "--out=samples.png"]) == 0
    assert train(*args, "--init=run", "--out=next") == 0
    assert latent_robust(["audit", "run", "--out=audit.jsonl"]) == 0


@pytest.mark.parametrize("objective", ["ddpm", "ambient"])
def test_the_audit_of_the_data_says_what_is_used(train, tmp_path, capsys, objective):
    """Copies are used by no objective; the order of the rows does not matter."""
    rows = [
        {"index": i, "name": f"digits:{i}", "level": 0.1 * (i % 2), "exclude": i >= 20}
        for i in range(40)
    ]
    (tmp_path / "audit.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    args = (f"--objective={objective}", "--audit=audit.jsonl")
    assert train(*args, "--limit=40", "--out=run") == 0
    assert "20 copies are left out" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "20 copies are left out" in metrics["data_audit"]
    assert "20 copies are left out" in (tmp_path / "run/report.html").read_text()


def test_an_audit_of_other_data_is_refused(train, tmp_path, capsys):
    (tmp_path / "audit.jsonl").write_text('{"index": 0, "name": "a.png", "level": 0}\n')
    assert train("--objective=ambient", "--audit=audit.jsonl", "--out=run") == 2
    assert "audit the data again" in capsys.readouterr().err
    assert not (tmp_path / "run/log.jsonl").exists()


def test_copies_are_in_no_batch(tmp_path):
    config = PixelConfig(limit=10)
    dataset = contaminated_images(config.model_dump())
    left_out = torch.arange(10) % 3 == 0
    task = PixelTask(config, dataset, tmp_path, main=True, left_out=left_out)
    assert task.buckets == [[1, 2, 4, 5, 7, 8]]


def test_an_image_is_dirty_below_the_level_that_hides_it():
    process = NoiseProcess.flow()
    times = torch.cat([process.time_of(s)[None] for s in (0.1, 0.9, 0.9, 3.0)])
    levels = Levels(torch.zeros(4), torch.tensor([0.5, 0.5, torch.inf, 0.0]))
    assert tags(process, times, levels).tolist() == [DIRTY, CLEAN, DIRTY, CLEAN]


def test_a_network_with_classes_is_drawn_away_from_the_dirty_one():
    network = build_network(PixelConfig(tag_dirt=True, objective="audited")).eval()
    noisy, t = torch.randn(3, 1, 8, 8), torch.full((3,), 500)
    with torch.no_grad():
        network.class_embedding.weight.normal_()
        clean, dirty = (
            network(noisy, t, class_labels=torch.full((3,), label)).sample for label in (0, 1)
        )
        drawn = DrawnAsClean(network, 0.5)(noisy, t).sample
    assert torch.allclose(drawn, 1.5 * clean - 0.5 * dirty, atol=1e-5)


@pytest.mark.usefixtures("quick_judges")
def test_trusted_images_are_named_or_come_from_a_folder_of_their_own(train, tmp_path):
    digits = open_images("digits", size=8, channels=1, limit=60)
    (tmp_path / "names.txt").write_text("".join(f"{digits.name(i)}\n" for i in range(5, 20)))
    (tmp_path / "mine").mkdir()
    for index in range(40, 55):
        array = (255 * digits.image(index)[0]).round().to(torch.uint8).numpy()
        Image.fromarray(array).save(tmp_path / "mine" / f"{index}.png")
    args = (BLUR, "--objective=audited", "--auditor=ddpm", "--samples=0")
    for trusted, count, expected in (
        ("names:names.txt", 40, range(5, 20)),
        ("mine", 55, range(40, 55)),
    ):
        assert train(*args, f"--trusted={trusted}", f"--out={count}") == 0
        rows = (tmp_path / f"{count}/manifest.jsonl").read_text().splitlines()
        clean = [i for i, row in enumerate(rows) if not json.loads(row)["corruptions"]]
        assert (len(rows), clean) == (count, list(expected))
    (tmp_path / "names.txt").write_text("nobody\n" * 12)
    assert train(*args, "--trusted=names:names.txt", "--out=other") == 2


def test_a_second_round_is_audited_by_the_first(train, tmp_path, capsys):
    args = (NOISY, "--objective=audited", "--auditor=ddpm")
    assert train(*args, "--rounds=2", "--out=run") == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "  " in line]
    assert rows[-4:] == ["ddpm", "audited", "run", "training"]
    assert train(*args, "--out=once") == 0
    networks = [
        load_file(tmp_path / run / "unet/diffusion_pytorch_model.safetensors")
        for run in ("run/audited", "once")
    ]
    assert all(torch.equal(networks[0][k], networks[1][k]) for k in networks[0])
    assert latent_robust(["audit", "run/audited", "--out=again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "run/audit.jsonl").read_text()


def test_noisy_images_can_be_left_out_by_the_manifest_or_by_an_audit(train, tmp_path, monkeypatch):
    trained_on = []
    original = Trainer._backward

    def backward(trainer, batch, micro):
        if trainer.config.drop_noisy:
            trained_on.extend(batch["index"].tolist())
        return original(trainer, batch, micro)

    monkeypatch.setattr(Trainer, "_backward", backward)
    half = "--contamination=gaussian:fraction=0.3,sigma=0.3; blur:fraction=0.3,sigma=1"
    for objective in ("ambient", "audited"):
        trained_on.clear()
        assert train(half, f"--objective={objective}", "--drop-noisy", f"--out={objective}") == 0
        file, key = {
            "ambient": ("manifest.jsonl", "corruptions"),
            "audited": ("audit.jsonl", "flagged"),
        }[objective]
        rows = (tmp_path / objective / file).read_text().splitlines()
        noisy = [bool(json.loads(row)[key]) for row in rows]
        assert any(noisy)
        assert trained_on
        assert not any(noisy[index] for index in trained_on)


def test_a_run_starts_from_the_network_of_another(train, finished_run, tmp_path, capsys):
    shutil.copytree(finished_run, tmp_path / "first")
    start = "--init=first"
    assert train(start, "--learning-rate=1e-30", "--out=run") == 0
    weights = [
        load_file(run / "unet/diffusion_pytorch_model.safetensors")
        for run in (finished_run, tmp_path / "run")
    ]
    assert all(torch.allclose(weights[0][k], weights[1][k]) for k in weights[0])
    assert train(start, "--size=16", "--parameterization=v_prediction", "--out=other") == 2
    assert "size: 8 there; parameterization: 'epsilon' there" in capsys.readouterr().err
    assert not (tmp_path / "other/checkpoints").exists()
    # Resuming does not need the run that it started from.
    shutil.rmtree(tmp_path / "first")
    assert main(["--resume", "run", "--steps=5"]) == 0
    assert main(["--resume", "--out=run", "--steps=6"]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["steps"] == 6


def test_an_audited_run_that_stopped_uses_the_audit_it_made(train, tmp_path):
    assert train(NOISY, "--objective=audited", "--out=run") == 0
    whole = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "run/metrics.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    shutil.rmtree(tmp_path / "run/robust-adversarial/unet")  # so that no new one could be made
    assert main(["--resume", "run"]) == 0
    again = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_weight_and_band_are_those_that_are_recommended(train, tmp_path, capsys):
    args = ["--data=digits", "--contamination=gaussian:fraction=1,sigma=0.2", "--limit=400"]
    sized = ["--size=8", "--channels=1", "--offline"]
    assert latent_robust(["recommend", *args, *sized, f"--out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["weight"] > 0
    program, *printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert program == "train-pixel"
    assert main([*printed, "--dry-run"]) == 0
    assert train(*args, "--out=run") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["weight"], config["band"]) == (found["weight"], found["band"])
    assert train(*args, "--weight=1", "--out=given") == 0
    assert yaml.safe_load((tmp_path / "given/config.yaml").read_text())["weight"] == 1


def test_where_nothing_is_clean_the_sampler_stops_where_training_did(train, tmp_path, capsys):
    noisy = "--contamination=gaussian:fraction=1,sigma=0.2"
    assert train(noisy, "--objective=ambient", "--compare-with=ddpm", "--out=run") == 0
    assert "the sampler stops at noise level 0.4" in capsys.readouterr().out
    files = sorted(tmp_path.rglob("metrics.json"))
    before = [file.stat().st_mtime_ns for file in files]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stop_at"] == 0.4
    assert read_runs([tmp_path / "run"])[0].config["stop_at"] == 0.4
    assert train(noisy, "--objective=ambient", "--compare-with=ddpm", "--out=run", "--resume") == 0
    assert main(["--resume", "run"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    assert "stop_at" not in json.loads((tmp_path / "run/ddpm/metrics.json").read_text())
    assert train(noisy, "--objective=ambient", "--out=given", "--stop-at=0.1") == 0
    assert "stop_at" not in json.loads((tmp_path / "given/metrics.json").read_text())


def test_the_auditor_of_an_audited_run_chooses_as_well(train, tmp_path, capsys):
    noisy = "--contamination=gaussian:fraction=0.9,sigma=0.2"
    assert train(noisy, "--limit=400", "--objective=audited", "--out=run") == 0
    assert "recommended: weight" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/robust-adversarial/metrics.json").read_text())
    assert metrics["weight"] > 0


def test_an_audited_baseline_has_an_auditor_of_its_own(train, tmp_path):
    args = ("--objective=input-perturbation", "--compare-with=audited", "--auditor=ddpm")
    assert train(NOISY, *args, "--out=run") == 0
    assert {"audited/ddpm/metrics.json", "audited/audit.jsonl", "audited/metrics.json"} <= names(
        tmp_path / "run"
    )


def test_a_plain_run_keeps_auto_in_its_configuration(train, tmp_path, capsys):
    """Else a robust run with this configuration would train without the regularizer."""
    assert train(NOISY, "--limit=400", "--objective=ddpm", "--out=run") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["weight"], config["band"]) == ("auto", "auto")
    args = ["--config=run/config.yaml", "--objective=robust-adversarial", "--out=robust"]
    assert main(args) == 0
    assert json.loads((tmp_path / "robust/metrics.json").read_text())["weight"] > 0


def test_a_finished_run_is_measured_again_with_other_settings(train, tmp_path):
    assert train(NOISY, "--out=run") == 0
    metrics = tmp_path / "run/metrics.json"
    first = metrics.read_text()
    metrics.write_text(first + "\n")
    assert main(["--resume", "run"]) == 0
    assert metrics.read_text() == first + "\n"  # nothing to do
    assert main(["--resume", "run", "--samples=12"]) == 0
    again = json.loads(metrics.read_text())
    assert again["measurement"]["samples"] == again["metrics"]["samples"] == 12
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["samples"] == 12


def test_a_finished_run_is_trained_again_from_a_checkpoint_that_is_named(train, tmp_path):
    assert train(NOISY, "--out=run") == 0
    whole = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    shutil.rmtree(tmp_path / "run/unet")
    assert main(["--resume", "run/checkpoints/step-00000002", "--out=run"]) == 0
    again = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_evaluate_says_when_it_has_no_clean_images(train, capsys):
    assert train("--out=run") == 0
    args = ["evaluate", "run", "--samples=16", "--features=pixels", "--offline"]
    assert latent_robust(args) == 0
    assert "its own training images" in capsys.readouterr().err
    assert latent_robust([*args, "--reference=digits"]) == 0
    assert "training images" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "--size=16"], "--size is the run's own"),
        (["sample", "--out=s.png", "--steps=2000"], "more than the 1,000 times"),
        (["evaluate", "--device=mps"], "--device mps is not available"),
        (["sample", "--out=s.png", "--prompt=a cat"], "--prompt is not for pixel runs"),
        (["sample", "--out=s.png", "--guidance=7"], "--guidance is not for pixel runs"),
    ],
)
def test_options_that_a_run_does_not_take_are_refused(finished_run, args, message, capsys):
    command, *options = args
    assert latent_robust([command, str(finished_run), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--steps=0"], ["--device=gpu"], ["--count=-1"]])
def test_options_of_sample_that_mean_nothing_are_refused(finished_run, args, capsys):
    assert latent_robust(["sample", str(finished_run), "--out=s.png", *args]) == 2
    assert args[0].partition("=")[0] in capsys.readouterr().err


def test_where_images_look_clean_it_is_plain_training(train, tmp_path, capsys):
    for objective in ("robust-adversarial", "ddpm"):
        assert train("--limit=400", f"--objective={objective}", f"--out={objective}") == 0
    assert "look clean" in capsys.readouterr().out
    weights = [
        load_file(tmp_path / run / "unet/diffusion_pytorch_model.safetensors")
        for run in ("robust-adversarial", "ddpm")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    facts = json.loads((tmp_path / "robust-adversarial/metrics.json").read_text())
    assert facts["data_look_clean"] is True


def test_where_images_look_clean_the_same_training_is_not_done_twice(train, tmp_path):
    assert train("--limit=400", "--compare-with=ddpm", "--out=run") == 0
    assert not (tmp_path / "run/ddpm").exists()
    assert "regularizer off" in (tmp_path / "run/report.html").read_text()


def test_without_data_it_is_the_demo(capsys):
    """Also with options that do not say what to train on."""
    for options in ([], ["--steps=7"]):
        assert main([*options, "--dry-run"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["contamination"] == "gaussian:fraction=0.9,sigma=0.2"
        assert config["compare_with"] == "ddpm"
    assert main(["--data=digits", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["contamination"] == "none"


def test_dry_run_touches_nothing(train, tmp_path, capsys):
    assert train("--dry-run", "--data=hf:some/where", *GRAY_8) == 0
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["data"] == "hf:some/where"
    assert "would train robust-adversarial (" in out
    assert "# not checked: whether the Hugging Face Hub has some/where" in out
    assert train("--dry-run", "--objective=audited", "--compare-with=ddpm") == 0
    assert "would train ddpm, then robust-adversarial, then audited (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lerning-rate=1"], "did you mean '--learning-rate'?"),
        (["--steps=x"], "`steps` = 'x'"),
        (["--data=digit"], "digits"),
        (["--data=nowhere/at/all"], "no such folder or file"),
        (["--data=hf:nobody/nothing", *GRAY_8], "offline"),
        (["--contamination=gauss:fraction=1"], "gaussian"),
        (["--contamination=gaussian:sigma=1"], "fraction"),
        (["--objective=ambient"], "levels"),
        (["--objective=ambient", "--levels=none.jsonl"], "cannot read the levels"),
        (["--objective=audited", "--auditor=ambient"], "use robust-adversarial"),
        (["--objective=audited", "--levels=l.jsonl"], "levels are for the objective ambient"),
        (["--rounds=2"], "rounds 2 is for the objective audited"),
        (["--samples=2"], "at least 4 samples"),
        (["--limit=3"], "and 3 images"),
        (["--attention-levels=8"], "count the 2 resolutions from 0"),
        (["--sampling-steps=2000"], "is more than noise_steps 1000"),
        (["--drop-noisy"], "use objective audited or ambient"),
        (["--tag-dirt"], "use objective audited or ambient"),
        ([NOISY, "--objective=ambient", "--tag-dirt", "--drop-noisy"], "choose one"),
        (["--data=."], "needs --size and --channels"),
        (["--data=.", "--size=16"], "needs --channels"),
        (["--trusted=nowhere"], "no such folder or file"),
        (["--trusted=names:nowhere"], "no such folder or file"),
        (["--trusted=spare:20"], "give a folder of images that you vouch for"),
        ([NOISY, "--trusted=spare:few"], "needs a whole number >= 10, got 'few'"),
        ([NOISY, "--trusted=spare:40"], "nothing is left to judge"),
        (
            [
                "--contamination=gaussian:fraction=1,sigma=0.1",
                "--objective=ambient",
                "--drop-noisy",
            ],
            "no sample is usable",
        ),
        (["--objective=audited", "--auditor=base"], "`auditor` = 'base'"),
        (["--init=nowhere"], "has no finished network"),
        (["--size=9"], "divisible by 2"),
        (["--norm-groups=3"], "multiple of norm_groups"),
        (["--dropout=0.1"], "fraction 1"),
        (["--parameterization=flow", "--clip=1"], "cannot clip"),
        (["--parameterization=sample", "--objective=invariance"], "same as equivariance"),
        (["--band=[0.1,0.2]"], "2 bands for data of 1 channels"),
        (["--channels=3", "--band=[0.1,0.2,0.3]"], "for several give a number"),
        (["--band=none"], "must be > 0"),
        (["--resume=nowhere", "--out=run"], "no valid checkpoint"),
        (["--resume=nowhere"], "neither a run nor a checkpoint"),
        (["--mixed-precision=fp16"], "needs a CUDA device"),
        (["--learned-variance", "--objective=input-perturbation"], "learned_variance"),
        (["--device=cuda"], "not available"),
        (["--features=inception", "--out=run"], "weights"),
    ],
)
def test_wrong_input_is_a_clear_message_and_exit_code_2(train, options, message, capsys):
    if options == ["--device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert train(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_broken_images_are_named_and_the_run_goes_on(train, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(37):  # with the three broken ones the 40 that TINY reads
        Image.fromarray(np.full((9, 9), 6 * i, np.uint8)).save(folder / f"{i:02}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    whole = (folder / "00.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert train("--data=images", *GRAY_8, "--max-bad-fraction=0.1", "--out=run") == 0
    rows = [json.loads(row) for row in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert {os.path.basename(row["name"]) for row in rows} == {"empty.png", "text.png", "torn.png"}
    assert "3 broken images" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert train("--data=images", *GRAY_8, "--max-bad-fraction=0.05", "--out=run2") == 2
    assert "torn.png" in capsys.readouterr().err
    args = ["recommend", "--data=images", "--size=8", "--channels=1"]
    assert latent_robust(args) == 2
    assert "raise --max-bad-fraction" in capsys.readouterr().err
    assert latent_robust([*args, "--max-bad-fraction=0.1"]) == 0


def test_a_run_that_diverged_says_so_in_its_metrics(train, tmp_path, monkeypatch):
    def generate(task, network, count):
        return torch.full((count, 1, 8, 8), float("nan"))

    monkeypatch.setattr(PixelTask, "generate", generate)
    assert train("--out=run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["diverged"] is True
    assert "pixels" not in metrics


def test_an_interrupt_at_any_time_says_how_to_go_on(train, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "finish", interrupted)
        assert train("--out=run") == 1
    assert "stopped; go on with: train-pixel --resume run" in capsys.readouterr().err
    assert main(["--resume", "run", "--device=cpu"]) == 0


def test_a_full_disk_ends_the_run_clearly(train, monkeypatch, capsys):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    assert train("--out=run") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_run_that_was_killed_while_it_began_goes_on(train, monkeypatch, tmp_path):
    """Also in the directory of its first part."""
    write = output.begin_directory

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "begin_directory", killed)
        assert train("--out=run", "--compare-with=ddpm") == 1
    assert (tmp_path / "run/ddpm/manifest.jsonl").exists()
    assert train("--out=run", "--compare-with=ddpm", "--resume") == 0
    assert (tmp_path / "run/metrics.json").exists()


def test_a_run_does_not_go_on_with_other_images(train, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("L", (8, 8), 30 * number).save(tmp_path / "images" / f"{number}.png")
    command = ("--data=images", *GRAY_8, "--samples=0", "--objective=ddpm", "--out=run")
    assert train(*command) == 0
    (tmp_path / "run/metrics.json").unlink()
    Image.new("L", (8, 8), 31).save(tmp_path / "images/1.png")
    capsys.readouterr()
    assert train(*command, "--resume") == 2
    assert "data fingerprint" in capsys.readouterr().err
    Image.new("L", (8, 8), 30).save(tmp_path / "images/1.png")
    assert train(*command, "--resume") == 0


# Saves what each rank has learned: the run's own files are written by the main process alone.
RANK = """
import os, sys
from safetensors.torch import save_file
from latent_robust.commands.train_pixel import main
from latent_robust.training.loop import Trainer

train, folder = Trainer.train, sys.argv.pop(1)


def train_and_save(trainer):
    finished = train(trainer)
    weights = {k: v.detach().clone() for k, v in trainer.plain_network.state_dict().items()}
    averages = trainer.ema.shadow_params if trainer.ema else []
    weights |= {f"average {n}": v.clone() for n, v in enumerate(averages)}
    save_file(weights, f"{folder}/{trainer.config.objective}-{os.environ['RANK']}.safetensors")
    return finished


Trainer.train = train_and_save
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path, tiny_options):
    """torchrun on the CPU: one log, one set of files, equal weights on both ranks; resumable."""
    script, ranks = tmp_path / "rank.py", tmp_path / "ranks"
    script.write_text(RANK)
    ranks.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        str(script),
        str(ranks),
        *tiny_options,
        "--out",
        str(tmp_path / "run"),
        "--samples=0",
        "--compare-with=ddpm",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    log = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in log] == [1, 2, 3, 4]
    for objective in ("ddpm", "robust-adversarial"):
        first, second = (load_file(ranks / f"{objective}-{rank}.safetensors") for rank in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), objective
    whole = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")

    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    (tmp_path / "run/metrics.json").unlink()
    subprocess.run(
        [*command, "--resume"], check=True, env=environment, capture_output=True, timeout=300
    )
    again = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
