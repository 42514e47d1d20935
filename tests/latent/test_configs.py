"""Every configuration resolves, and says that it was not run."""

from pathlib import Path

import pytest

from latent_robust.commands.finetune_latent import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs/latent").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dry_run(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ["--config", str(path), "--dry-run"]
    assert main([*told, "--model", "some/model", "--data", "hf:some/data"]) == 0
    assert "would train" in capsys.readouterr().out
    for absent in (
        ["--model", "demo", "--data", "absent"],
        ["--model", "a/b/c", "--data", "scenes"],
    ):
        assert main([*told, *absent]) == 2
    assert not list(tmp_path.iterdir())
    text = path.read_text()
    assert "Not run at full scale here" in text
    assert f"configs/latent/{path.name}" in text
