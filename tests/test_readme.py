"""README: what it shows runs as it stands, its numbers are those of results/, it stays short."""

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDPMScheduler, UNet2DConditionModel
from prose import sentences

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def loop_names() -> dict:
    """What a training loop has when it comes to the lines that are shown."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    noise_scheduler = DDPMScheduler()
    noise = torch.randn(2, 4, 8, 8)
    t = torch.tensor([10, 900])
    return {
        "unet": unet,
        "noise_scheduler": noise_scheduler,
        "noisy": noise_scheduler.add_noise(torch.randn(2, 4, 8, 8), noise, t),
        "t": t,
        "text": torch.randn(2, 3, 8),
        "target": noise,
        "device": "cpu",
        "F": F,
    }


@pytest.mark.parametrize("page", ["README.md", "docs/library-author.md"])
def test_the_lines_for_your_own_loop_run(page):
    first, *further = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = loop_names()
    exec(first, names)
    plain = F.mse_loss(names["prediction"], names["target"])
    assert names["loss"] > plain
    for code in further:
        exec(code, dict(names))
    names["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in names["unet"].parameters())


# The rows of each table row, in the order of its columns: file of results/, name there.
FIGURES = {
    "digits 8x8, 90 % noisy": [
        ("digits", "DDPM"),
        ("digits", "adversarial"),
        ("digits", "audited"),
        ("digits", "DDPM on clean data (floor)"),
    ],
    "Fashion-MNIST 16x16, 90 % noisy": [
        ("fashion-mnist", "DDPM"),
        ("fashion-mnist", "adversarial"),
        ("fashion-mnist", "audited"),
        ("fashion-mnist", "DDPM on clean data (floor)"),
    ],
    "LoRA on scenes 32x32, 90 % noisy": [
        ("latent-demo", "plain LoRA"),
        ("latent-demo", "robust-random"),
        ("latent-demo", "audited"),
        ("latent-demo", "plain LoRA on clean data (floor)"),
    ],
    "LoRA on emoji 32x32, 90 % noisy": [
        ("latent-emoji", "plain LoRA"),
        ("latent-emoji", "robust-random"),
        ("latent-emoji", "audited"),
        ("latent-emoji", "plain LoRA on clean data (floor)"),
    ],
    "digits 8x8, 90 % JPEG at quality 15": [
        ("dirt", "JPEG: DDPM"),
        ("dirt", "JPEG: adversarial"),
        ("dirt", "JPEG: audited"),
        ("grid", "clean: DDPM"),
    ],
}


def measured(file: str, row: str) -> tuple[str, int]:
    """=>  mean and standard deviation over the seeds, as the tables write them; how many seeds."""
    rows = json.loads((ROOT / f"results/{file}.json").read_text())
    values = [r["metrics"]["pixels"]["frechet"] for r in rows if r["row"] == row]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}", len(values)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_those_of_results(name):
    row = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
    seeds, *shown = (cell.strip() for cell in row.strip("|").split("|")[1:])
    expected = [measured(*source) for source in FIGURES[name]]
    assert shown == [figure for figure, _ in expected]
    assert {int(seeds)} == {count for _, count in expected}


def test_the_figures_in_the_text_are_those_of_results():
    for figure, file, row in (
        ("1.14", "digits", "DDPM, 10,000 steps"),
        ("0.711", "digits", "DDPM, sampler stopped at 0.7"),
    ):
        assert measured(file, row)[0].startswith(figure)
        assert figure in README


def test_it_is_short():
    assert len(README.split()) <= 1500
    assert len(README.partition("    bash scripts/demo.sh")[0].split()) <= 60
    long = [sentence for sentence in sentences(README) if len(sentence.split()) > 35]
    assert long == []


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_citation_is_the_same_in_both_places():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    bibtex = re.search(r"```bibtex\n(.*?)```", README, re.DOTALL).group(1)
    for text in (paper["title"], paper["collection-title"], str(paper["year"]), paper["notes"]):
        assert text in bibtex
