import pytest

from latent_robust.commands.train_pixel import main

TINY = [
    "--data=digits",
    "--steps=4",
    "--batch-size=4",
    "--samples=16",
    "--sampling-steps=2",
    "--block-out-channels=8,8",
    "--limit=40",
    "--log-every=1",
    "--checkpoint-every=2",
    "--device=cpu",
    "--offline",
]


@pytest.fixture
def tiny_options():
    return TINY


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(*options) => exit code, of a run of seconds in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *options: main([*TINY, *options])


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    contamination = "--contamination=gaussian:fraction=0.9,sigma=0.2"
    assert main([*TINY, contamination, "--compare-with=ddpm", "--out", str(out)]) == 0
    return out
