import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError

from latent_robust.errors import InputError
from latent_robust.training import checkpoint as module
from latent_robust.training.checkpoint import (
    FILES,
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)


def some_checkpoint(step=1):
    return Checkpoint(
        model={"a.weight": torch.randn(3, 2), "half": torch.randn(2).bfloat16()},
        ema={"a.weight": torch.randn(3, 2)},
        optimizer={
            "state": {"a.weight": {"step": torch.tensor(7.0), "exp_avg": torch.randn(3, 2)}},
            "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0]}],
        },
        trainer={"step": step},
    )


def test_round_trip(tmp_path):
    saved = some_checkpoint()
    loaded = load_checkpoint(save_checkpoint(saved, tmp_path, keep=1))
    assert all(torch.equal(saved.model[k], loaded.model[k]) for k in saved.model)
    assert torch.equal(
        saved.optimizer["state"]["a.weight"]["exp_avg"],
        loaded.optimizer["state"]["a.weight"]["exp_avg"],
    )
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_nothing_in_it_is_a_pickle(tmp_path):
    files = os.listdir(save_checkpoint(some_checkpoint(), tmp_path, keep=1))
    assert {name.rpartition(".")[2] for name in files} == {"safetensors", "json"}


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [missing, truncated, empty, flipped])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_earlier_checkpoint_used(tmp_path, name, damage):
    good = save_checkpoint(some_checkpoint(1), tmp_path, keep=2)
    bad = save_checkpoint(some_checkpoint(2), tmp_path, keep=2)
    damage(bad / name)
    with pytest.raises(InputError, match=name):
        load_checkpoint(bad)
    assert load_latest(tmp_path)[1] == good


def test_rotation_keeps_the_newest_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("notes")
    for step in range(1, 6):
        save_checkpoint(some_checkpoint(step), tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    assert (tmp_path / "mine.txt").read_text() == "notes"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        # What safetensors 0.8 really raises.
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_a_full_disk_is_a_clear_error_and_the_old_checkpoint_stays(tmp_path, monkeypatch, error):
    good = save_checkpoint(some_checkpoint(1), tmp_path, keep=1)

    def full(*_):
        raise error

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError, match=r"No space left.*earlier checkpoints are intact"):
        save_checkpoint(some_checkpoint(2), tmp_path, keep=1)
    assert os.listdir(tmp_path) == [good.name]
    assert load_checkpoint(good).trainer["step"] == 1


def test_the_remains_of_a_killed_save_are_not_a_checkpoint(tmp_path):
    half = tmp_path / ".step-00000003.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path) is None
    save_checkpoint(some_checkpoint(3), tmp_path, keep=1)
    assert json.loads((tmp_path / "step-00000003" / "trainer.json").read_text())["step"] == 3
    assert not half.exists()
