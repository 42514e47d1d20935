"""configs/pixel: each file is valid, says what it is, and agrees with the published table."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from latent_robust.commands.train_pixel import COMMAND, main
from latent_robust.data import parse_contamination
from latent_robust.training.checkpoint import load_latest
from latent_robust.training.options import parse_options, read_yaml
from pixel.config import PixelConfig
from pixel.network import build_network

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/pixel").glob("*.yaml"))
CIFAR10 = ROOT / "../shared/data/cifar10-train.parquet"

# (data, sigma of the noise on 90 % of the images or None, objective): FID / IS as published.
PUBLISHED = {
    ("CIFAR-10", None, "ddpm"): "FID 7.20 / IS 8.95",
    ("CIFAR-10", None, "robust-adversarial"): "FID 28.68 / IS 7.04",
    ("CIFAR-10", None, "invariance"): "FID 356.9",
    ("CIFAR-10", 0.1, "ddpm"): "FID 58.05 / IS 6.93",
    ("CIFAR-10", 0.1, "robust-adversarial"): "FID 24.70 / IS 7.21",
    ("CIFAR-10", 0.1, "robust-random"): "FID 79.21 / IS 5.21",
    ("CIFAR-10", 0.2, "ddpm"): "FID 102.68 / IS 4.19",
    ("CIFAR-10", 0.2, "robust-adversarial"): "FID 24.81 / IS 7.07",
    ("CIFAR-10", 0.2, "robust-random"): "FID 68.04 / IS 4.34",
    ("CelebA", 0.2, "ddpm"): "FID 96.03 / IS 2.65",
    ("CelebA", 0.2, "robust-adversarial"): "FID 16.53 / IS 2.11",
    ("LSUN Bedroom", 0.2, "ddpm"): "FID 95.85 / IS 4.08",
    ("LSUN Bedroom", 0.2, "robust-adversarial"): "FID 44.27 / IS 2.50",
    ("ImageNet-64", 0.1, "ddpm"): "FID 97.6",
    ("ImageNet-64", 0.1, "robust-adversarial"): "FID 83.8",
    ("ImageNet-64", 0.2, "ddpm"): "FID 129.4",
    ("ImageNet-64", 0.2, "robust-adversarial"): "FID 80.3",
}
DATA = {
    "hf:uoft-cs/cifar10:train": "CIFAR-10",
    "data/celeba": "CelebA",
    "data/lsun-bedroom": "LSUN Bedroom",
    "data/imagenet": "ImageNet-64",
}


def resolved(path):
    return parse_options(PixelConfig, ["--config", str(path)], prog="train-pixel")


def header(path):
    lines = path.read_text().splitlines()
    return [line for line in lines if line.startswith("#")]


def published_key(config):
    """What the published table would call this run; None for data that it does not have."""
    if config.data not in DATA:
        return None
    corruptions = parse_contamination(config.contamination)
    assert [(c.kind, c.fraction) for c in corruptions] in ([], [("gaussian", 0.9)])
    sigma = corruptions[0].sigma if corruptions else None
    return DATA[config.data], sigma, config.objective


PAPER = [path for path in CONFIGS if published_key(resolved(path)) is not None]
every = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
of_the_paper = pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)


@every
def test_dry_run_prints_what_would_run_and_touches_nothing(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = resolved(path)
    folder = config.data.partition(":")[2] if config.data.startswith("fashion") else config.data
    if not (folder == "digits" or folder.startswith("hf:") or Path(folder).exists()):
        assert main(["--config", str(path), "--dry-run"]) == 2
        assert f"no such folder or file: {folder!r}" in capsys.readouterr().err
        config = config.model_copy(update={"data": "digits"})
    assert main(["--config", str(path), "--data", config.data, "--dry-run"]) == 0
    # Its last line is a comment, so that all of it is YAML again.
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == config.model_dump(mode="json")
    assert list(tmp_path.iterdir()) == []


@every
def test_keys_come_in_the_same_order_everywhere(path):
    keys = list(read_yaml(path, PixelConfig))
    assert keys == [name for name in PixelConfig.model_fields if name in keys]


def test_each_published_number_has_one_configuration():
    keys = [published_key(resolved(path)) for path in PAPER]
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(PUBLISHED)


@of_the_paper
def test_header_names_the_published_number_and_how_to_launch(path):
    lines = header(path)
    number = PUBLISHED[published_key(resolved(path))]
    assert f"# Published: {number}. Not run at full scale here." in lines
    assert f"#     --config {path.relative_to(ROOT)} \\" in lines
    assert f"#     --out runs/{path.stem}" in lines
    assert "8 x 16 = 128 images a step" in "".join(lines)
    assert (
        "torchrun --nproc-per-node 8 -m latent_robust.commands.train_pixel --batch-size 16 "
        in "".join(lines)
    )


@of_the_paper
def test_settings_that_the_paper_states(path):
    config = resolved(path)
    assert (config.rho, config.bias_min, config.attack_steps) == (2.0, 8 / 255, 1)
    assert (config.batch_size * config.gradient_accumulation, config.ema_decay) == (128, 0.9999)
    assert config.features == ("inception",)
    if config.objective != "ddpm":
        assert (config.weighting, config.weight, config.penalty_fraction) == ("paper", 0.3, 1.0)
        assert config.attack == "gradient" or config.objective == "robust-random"


def test_digits_is_what_train_pixel_does_without_arguments():
    without_arguments = parse_options(PixelConfig, [], prog="train-pixel", values=COMMAND.demo)
    assert resolved(ROOT / "configs/pixel/digits.yaml").model_dump() == (
        without_arguments.model_dump()
    )


def test_cifar10_network_is_that_of_improved_ddpm():
    with torch.device("meta"):
        network = build_network(resolved(ROOT / "configs/pixel/cifar10-robust-adv.yaml"))
    parameters = sum(p.numel() for p in network.parameters())
    # 52.55 M; the paper gives 52.5 M, three figures. Biases and norms that diffusers' attention
    # has or lacks are below 0.01 M; a level, block or attention too many is above 0.5 M.
    assert parameters == pytest.approx(52.5e6, abs=0.1e6)


SHRUNK = ["--block-out-channels=32,64,64,64"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SHRUNK, id="shrunk"),
        pytest.param([], id="true-size", marks=pytest.mark.slow),  # 45 s, 1 GB of disk
    ],
)
def test_real_steps_of_cifar10_robust_adv(options, tmp_path, monkeypatch):
    """Learned variance, dropout, flips and the penalty on the whole batch, all at once."""
    if not CIFAR10.is_file():
        pytest.skip(f"no {CIFAR10.name} beside the repository")
    monkeypatch.chdir(tmp_path)
    short = "--steps=2 --batch-size=2 --limit=64 --samples=0 --sampling-steps=1 --log-every=1"
    quiet = "--workers=0 --device=cpu --offline --out=run"
    path = ROOT / "configs/pixel/cifar10-robust-adv.yaml"
    argv = ["--config", str(path), f"--data=parquet:{CIFAR10}", *short.split(), *quiet.split()]
    try:
        assert main([*argv, *options]) == 0
        checkpoint, _ = load_latest(Path("run/checkpoints"))
        rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    finally:
        shutil.rmtree("run", ignore_errors=True)

    settings = checkpoint.trainer["identity"]
    assert settings["learned_variance"]
    assert settings["flip"]
    assert (settings["dropout"], settings["penalty_fraction"]) == (0.3, 1.0)
    assert checkpoint.trainer["step"] == 2
    assert checkpoint.model["conv_out.weight"].shape[0] == 6  # 3 of the mean, 3 of the variance
    tensors = [*checkpoint.model.values(), *checkpoint.ema.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["penalty"] > 0
        # The rest of the loss is that of the variance; without it only rounding would be left.
        assert abs(row["loss"] - row["denoising"] - row["penalty"]) > 1e-4
