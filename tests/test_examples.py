"""The text of examples/ runs as it stands, and but for its marked lines it is the plain loop."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from latent.tiny import saved
from PIL import Image

import latent_robust
from latent_robust.latent.base.components import load_components
from latent_robust.latent.lora.files import load_lora

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "examples/plain_diffusers_lora.py").read_text()
MARK = "  # latent-robust"
PLAIN = "".join(line for line in EXAMPLE.splitlines(True) if MARK not in line)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Five captioned images as an imagefolder of `datasets`."""
    folder = tmp_path_factory.mktemp("images")
    rows = [{"file_name": f"{i}.png", "text": f"image {i}"} for i in range(5)]
    for i, row in enumerate(rows):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request, tmp_path_factory) -> Path:
    """A folder with a model of epsilon, and of v-prediction."""
    return saved(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(model, images, tmp_path, monkeypatch):
    """(text, out) -> the names that the text leaves behind after two steps."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(text: str, out: Path = tmp_path / "lora") -> dict:
        options = ["--resolution", "16", "--rank", "2", "--steps", "2", "--learning-rate", "0.01"]
        monkeypatch.setattr("sys.argv", ["example", str(model), str(images), str(out), *options])
        names = {"__name__": "__main__"}
        exec(compile(text, "plain_diffusers_lora.py", "exec"), names)
        return names

    return run


def answer(network) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 77, 16, generator=generator)
    with torch.no_grad():
        return network.eval()(noisy, 500, text).sample


def test_trains_a_lora_that_loads(run, model, tmp_path):
    trained = answer(run(EXAMPLE)["unet"])
    components = load_components(str(model))
    base = answer(components.network)
    load_lora(components, tmp_path / "lora/pytorch_lora_weights.safetensors")
    assert torch.equal(answer(components.network), trained)
    assert not torch.equal(base, trained)


def test_without_the_marked_lines_it_is_the_plain_loop(run, monkeypatch):
    assert "latent_robust" not in PLAIN
    assert "penalty(" not in PLAIN
    plain, robust = run(PLAIN)["lora"], run(EXAMPLE)["lora"]
    monkeypatch.setattr(latent_robust, "EquivariancePenalty", lambda *_, **__: lambda *_: 0.0)
    nothing_added = run(EXAMPLE)["lora"]
    assert all(map(torch.equal, plain, nothing_added))
    assert not all(map(torch.equal, plain, robust))


def test_readme_shows_the_marked_lines():
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    shown = [line.partition("  #")[0] for line in snippet.splitlines()]
    marked = [line.partition(MARK)[0].strip() for line in EXAMPLE.splitlines() if MARK in line]
    assert len(marked) == 5
    only_here = [line for line in marked if line not in shown]
    assert only_here == [
        "noisy, t, text, prediction = (x[::4] for x in (noisy, t, text, prediction))"
    ]
    ours = [line for line in shown if "latent_robust" in line or "penalty" in line]
    assert all(line in marked for line in ours)
