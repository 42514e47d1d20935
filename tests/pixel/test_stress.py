import json

import pytest
import torch

from latent_robust.commands.main import main
from latent_robust.errors import InputError
from latent_robust.evaluation.features import make_extractor
from latent_robust.evaluation.metrics import frechet_distance
from latent_robust.evaluation.runs import read_runs
from latent_robust.evaluation.sampling import generate_samples
from pixel.finished import (
    choose_sampler,
    load_run,
    original_images,
    training_and_held_out,
    training_images,
)

PNG = b"\x89PNG"


@pytest.fixture
def runs(finished_run):
    return [str(finished_run / "ddpm"), str(finished_run)]


def test_attack_compares_runs(runs, finished_run, tmp_path):
    out = tmp_path / "attack.json"
    options = ["--samples=12", "--radius=0.5,1", "--at=900,100", f"--out={out}", "--offline"]
    assert main(["attack", *runs, *options, "--kind=fgsm", "--depth=2", "--sampler=ddpm"]) == 0
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    result = json.loads(out.read_text())
    assert (result["at"], result["depth"], result["kind"]) == ([900, 100], 2, "fgsm")
    assert list(result["runs"]) == ["ddpm", "robust-adversarial"]
    for rows in result["runs"].values():
        assert [row["radius"] for row in rows] == [0, 0.5, 1]
        assert rows[0]["displacement"] == 0 < rows[1]["displacement"]


def test_radius_zero_of_the_curve_is_sampling_without_attack(finished_run, tmp_path):
    out = tmp_path / "attack.json"
    assert main(["attack", str(finished_run), "--samples=12", f"--out={out}", "--radius=1"]) == 0
    (rows,) = json.loads(out.read_text())["runs"].values()
    generated = generate_samples(*load_run(finished_run, "ddim"), 12, steps=2, seed=0)
    (run,) = read_runs([finished_run])
    clean = original_images(run.config, offline=True, data="digits").clean_tensor()
    pixels = make_extractor("pixels")
    assert rows[0]["frechet"]["pixels"] == frechet_distance(pixels(generated), pixels(clean))


def test_flow_matching_has_one_sampler():
    run = {"parameterization": "flow", "sampler": "ddim"}
    assert choose_sampler(None, run) == "ddim"
    with pytest.raises(InputError, match="--sampler is not for flow"):
        choose_sampler("ddpm", run)


def test_memorization_compares_with_the_training_images(runs, tmp_path):
    out = tmp_path / "memorization.json"
    assert main(["memorization", *runs, "--samples=12", f"--out={out}"]) == 0
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    for spaces in json.loads(out.read_text())["runs"].values():
        assert list(spaces) == ["pixels", "digits"]
        assert all("nearer_to_training" in result for result in spaces.values())


@pytest.mark.parametrize("originals", [False, True])
def test_held_out_images_are_others_and_contaminated_alike(finished_run, originals):
    (run,) = read_runs([finished_run])
    training, held_out = training_and_held_out(run.config, originals=originals, offline=True)
    everything = training_images(run.config, offline=True)
    everything = everything.clean_tensor() if originals else everything.sample_tensor()
    assert torch.equal(training, everything[:40])  # the run's `limit`
    assert len(held_out) == 40
    assert all((everything[40:] == image).flatten(1).all(1).any() for image in held_out)


@pytest.mark.parametrize("command", ["attack", "memorization"])
def test_a_latent_run_is_refused(command, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: demo\n")
    assert main([command, str(tmp_path), f"--out={tmp_path / 'x.json'}"]) == 2
    assert "only runs of train-pixel can be tested" in capsys.readouterr().err


def test_out_that_is_no_json_file_is_refused(runs, tmp_path, capsys):
    assert main(["attack", *runs, f"--out={tmp_path / 'attack.png'}"]) == 2
    assert "--out must be a .json file" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--radius=-1", "--at=early", "--draws=0"])
def test_wrong_numbers_are_refused(runs, tmp_path, wrong):
    assert main(["attack", *runs, f"--out={tmp_path / 'attack.json'}", wrong]) == 2
