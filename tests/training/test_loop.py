import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny import Points, make_trainer
from torch import nn

from latent_robust.errors import Diverged, InputError
from latent_robust.training import loop
from latent_robust.training.checkpoint import list_checkpoints, load_checkpoint, load_latest
from latent_robust.training.loop import without_weight_gradients
from latent_robust.training.nonfinite import MAX_BAD_STEPS
from latent_robust.training.state import capture

TINY = Path(__file__).with_name("tiny.py")


def assert_same_state(a, b):
    """Every tensor of two checkpoints, bit for bit."""
    for part in ("model", "ema"):
        left, right = getattr(a, part), getattr(b, part)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left), part
    assert a.optimizer["state"].keys() == b.optimizer["state"].keys()
    for name, moments in a.optimizer["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, b.optimizer["state"][name][key]), (name, key)
    assert a.trainer["schedule"] == b.trainer["schedule"]
    assert a.trainer["step"] == b.trainer["step"]


@pytest.mark.parametrize("how", [{}, {"penalty_fraction": 0.2, "penalty_every": 2}])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, accumulation, how):
    settings = {"gradient_accumulation": accumulation, **how}
    whole = make_trainer(tmp_path / "whole", **settings)
    assert whole.train()
    first = make_trainer(tmp_path / "parts", checkpoint_every=7, **settings)
    first.config = first.config.model_copy(update={"steps": 7})  # leaves the schedule as it is
    first.train()
    torch.manual_seed(999)  # whatever ran in between
    second = make_trainer(tmp_path / "parts", resume="auto", **settings)
    assert second.step == 7
    assert second.train()
    assert_same_state(capture(whole), capture(second))
    # DataLoader fetches nothing ahead without workers: the order is exactly what was trained on.
    assert whole.task.dataset.seen == first.task.dataset.seen + second.task.dataset.seen
    rows = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    losses = [[json.loads(row)["loss"] for row in run] for run in rows]
    assert losses[0] == losses[1]


class AsBitsandbytes(torch.optim.AdamW):
    """Its state_dict nests the moments; what is loaded is flat."""

    def state_dict(self):
        whole = super().state_dict()
        nested = {
            index: {"step": moments.pop("step"), "__bnb_optimizer_quant_state__": moments}
            for index, moments in ((i, dict(m)) for i, m in whole["state"].items())
        }
        return {**whole, "state": nested}


def test_moments_as_bitsandbytes_nests_them_are_saved_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop, "make_optimizer", lambda config, p, device: AsBitsandbytes(p, config.learning_rate)
    )
    whole = make_trainer(tmp_path / "whole")
    assert whole.train()
    first = make_trainer(tmp_path / "parts", checkpoint_every=7)
    first.config = first.config.model_copy(update={"steps": 7})
    first.train()
    second = make_trainer(tmp_path / "parts", resume="auto")
    assert second.step == 7
    assert second.train()
    assert_same_state(capture(whole), capture(second))


def test_late_start_is_plain_training_until_then(tmp_path):
    steps = {"checkpoint_every": 6, "keep_checkpoints": 9}
    plain = make_trainer(tmp_path / "plain", objective="ddpm", **steps)
    late = make_trainer(tmp_path / "late", penalty_last=0.5, **steps)
    assert plain.train()
    assert late.train()
    at = [
        [load_checkpoint(run / f"checkpoints/step-{step:08d}") for run in (plain.out, late.out)]
        for step in (6, 12)
    ]
    assert_same_state(*at[0])
    assert any(not torch.equal(at[1][0].model[k], at[1][1].model[k]) for k in at[1][0].model)


def run_tiny(out, steps, *more):
    return subprocess.Popen(
        [sys.executable, str(TINY), str(out), str(steps), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_killed_run_resumes_bit_for_bit(tmp_path):
    """kill -9 while it saves after every step: mostly inside a save."""
    steps = 4000
    process = run_tiny(tmp_path / "killed", steps)
    process.stdout.readline()
    while not list_checkpoints(tmp_path / "killed" / "checkpoints"):
        time.sleep(0.01)
    time.sleep(random.Random(os.getpid()).uniform(0.0, 0.5))
    process.kill()
    process.wait()
    reached = load_latest(tmp_path / "killed" / "checkpoints")[0].trainer["step"]
    assert 0 < reached < steps

    goal = reached + 5
    resumed = make_trainer(tmp_path / "killed", steps=steps, resume="auto", checkpoint_every=steps)
    whole = make_trainer(tmp_path / "whole", steps=steps, checkpoint_every=steps)
    assert resumed.step == reached
    for trainer in (resumed, whole):
        batches = trainer.batches()
        trainer.network.train()
        while trainer.step < goal:
            trainer.train_step(batches)
            trainer.step += 1
    assert_same_state(capture(resumed), capture(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", [(), ("workers",)])
def test_a_signal_to_the_process_group_saves_and_leaves(tmp_path, number, more):
    """As Ctrl-C at a terminal and a scheduler's time limit send it."""
    process = run_tiny(tmp_path, 100_000, *more)
    process.stdout.readline()
    while not list_checkpoints(tmp_path / "checkpoints"):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 3
    assert load_latest(tmp_path / "checkpoints") is not None


def test_bad_samples_skip_their_step_and_are_named(tmp_path, caplog):
    trainer = make_trainer(tmp_path, dataset=Points(count=60, bad=[7]), steps=12)
    assert trainer.train()
    assert all(p.isfinite().all() for p in trainer.parameters)
    skipped = [r.message for r in caplog.records if "skipped" in r.message]
    assert len(skipped) == 1  # 12 steps of 5 are one epoch of 60
    assert "7" in skipped[0]


def test_a_device_that_is_not_asked_at_each_step_trains_the_same(tmp_path, caplog):
    """Nor is a bad step forgotten that is heard of when the log is written, or a checkpoint."""
    states, heard = [], []
    for at_once in (True, False):
        caplog.clear()
        dataset = Points(count=60, bad=[7])
        trainer = make_trainer(tmp_path / str(at_once), dataset=dataset, steps=24, log_every=100)
        trainer.bad_steps.at_once = at_once
        assert trainer.train()
        states.append(capture(trainer))
        heard.append([r.message for r in caplog.records if "skipped" in r.message])
    assert_same_state(*states)
    assert heard[0] == heard[1]
    assert len(heard[0]) == 2


def test_one_bad_step_does_not_hide_the_others_from_the_log(tmp_path):
    trainer = make_trainer(tmp_path, dataset=Points(count=60, bad=[7]), log_every=12)
    trainer.train()
    (row,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert all(math.isfinite(value) for value in row.values())


def test_the_log_is_json_though_nothing_is_finite(tmp_path):
    with pytest.raises(Diverged):
        make_trainer(tmp_path, dataset=Points(bad=range(37)), log_every=1).train()
    refused = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    rows = [json.loads(line, **refused) for line in (tmp_path / "log.jsonl").open()]
    assert len(rows) == MAX_BAD_STEPS - 1
    assert all(row["loss"] is None for row in rows)


def test_samples_of_another_process_are_not_named(tmp_path, monkeypatch, caplog):
    """Where only its loss is bad, and where it is the gradient of all of them."""
    trainer = make_trainer(tmp_path, dataset=Points())
    bad = torch.tensor([1.0, 1.0])
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda value, how: value + bad)
    trainer.network.train()
    trainer.train_step(trainer.batches())
    assert not caplog.records
    bad[0] = 0
    trainer.train_step(trainer.batches())
    assert "skipped" in caplog.records[0].message


def test_gradients_that_fp16_cannot_scale_are_the_end(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, steps=100)
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged, match="fp16"):
        trainer.train()
    assert 30 < trainer.step < 40  # from 2^16 to less than 2^-16 by halves


def test_a_run_that_goes_on_for_longer_has_the_rates_of_the_longer_run(tmp_path):
    whole = make_trainer(tmp_path / "whole", steps=24)
    whole.train()
    make_trainer(tmp_path / "parts", steps=12).train()
    make_trainer(tmp_path / "parts", steps=24, resume="auto").train()

    def rates(run):
        rows = map(json.loads, (tmp_path / run / "log.jsonl").open())
        return [row["learning_rate"] for row in rows][12:]

    assert rates("parts") == rates("whole")


def test_a_bad_step_leaves_weights_and_moments_as_they_were(tmp_path):
    trainer = make_trainer(tmp_path, dataset=Points(bad=range(37)), warmup=0)
    trainer.network.train()
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.train_step(trainer.batches())
    assert all(torch.equal(p, b) for p, b in zip(trainer.parameters, before, strict=True))
    for moments in trainer.optimizer.optimizer.state.values():
        assert not any(moment.any() for moment in moments.values())  # its count of steps as well


def test_several_bad_steps_in_a_row_stop_at_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, dataset=Points(bad=range(37)))
    with pytest.raises(Diverged, match=rf"{MAX_BAD_STEPS} steps in close succession.*checkpoints"):
        trainer.train()


def test_a_bad_penalty_stops_it_as_well_though_it_comes_in_every_second_step(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, penalty_fraction=0.4, penalty_every=2, steps=40)
    of_branches = trainer.objective.penalty.of_branches

    def not_finite(*args, **options):
        return float("nan") * of_branches(*args, **options)

    monkeypatch.setattr(trainer.objective.penalty, "of_branches", not_finite)
    with pytest.raises(Diverged):
        trainer.train()
    assert trainer.step == 2 * MAX_BAD_STEPS - 1


def test_bad_steps_far_from_each_other_do_not_stop_it(tmp_path):
    """One in each epoch of twelve steps."""
    trainer = make_trainer(tmp_path, dataset=Points(count=60, bad=[7]), steps=100)
    assert trainer.train()


def test_clipping_really_clips(tmp_path):
    trainer = make_trainer(tmp_path, max_gradient_norm=1e-3)
    batches = trainer.batches()
    trainer.network.train()
    row = trainer._backward(next(batches), 0)
    norm = trainer.accelerator.clip_grad_norm_(trainer.parameters, 1e-3)
    assert row["loss"].isfinite()
    assert norm > 1e-3
    clipped = torch.stack([p.grad.norm() for p in trainer.parameters]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("change", [{"seed": 5}, {"batch_size": 6}, {"weight": 1.0}])
def test_resuming_with_other_settings_is_refused_with_the_difference(tmp_path, change):
    make_trainer(tmp_path, steps=4).train()
    with pytest.raises(InputError, match=rf"{next(iter(change))}: .* in the saved run"):
        make_trainer(tmp_path, steps=4, resume="auto", **change)


def test_a_network_is_not_said_to_have_taken_fewer_steps_than_it_has(tmp_path):
    make_trainer(tmp_path, steps=4).train()
    with pytest.raises(InputError, match="4 steps are taken already, more than --steps 3"):
        make_trainer(tmp_path, steps=3, resume="auto")


def test_log_keeps_only_what_was_trained(tmp_path):
    """A killed run may have logged steps that its last checkpoint does not contain."""
    make_trainer(tmp_path, steps=12, checkpoint_every=8).train()
    for late in list_checkpoints(tmp_path / "checkpoints")[1:]:
        (late / "manifest.json").unlink()
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 13, "lo')
    resumed = make_trainer(tmp_path, steps=12, resume="auto")
    assert resumed.step == 8
    resumed.train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_going_back_to_an_earlier_checkpoint_leaves_the_later_ones_aside(tmp_path):
    make_trainer(tmp_path, steps=12, keep_checkpoints=3).train()
    earlier = tmp_path / "checkpoints" / "step-00000004"
    branch = make_trainer(tmp_path, steps=12, resume=str(earlier), keep_checkpoints=1)
    assert branch.step == 4
    branch.train()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["abandoned-step-00000008", "abandoned-step-00000012", "step-00000012"]


def test_a_compiled_network_trains_as_an_eager_one(tmp_path, monkeypatch):
    """The same weights; and the attack's compiled backward makes no gradient of a weight."""
    wanted = []

    def recorded(denoise, parameters):
        frozen = without_weight_gradients(denoise, parameters)

        def call(*args):
            answer = frozen(*args)
            wanted.append(all(parameter.requires_grad for parameter in parameters))
            leaves = _leaves(answer.grad_fn)
            wanted.append(not any(leaf is p for leaf in leaves for p in parameters))
            return answer

        return call

    monkeypatch.setattr("latent_robust.training.loop.without_weight_gradients", recorded)
    # Inductor's graphs without its code, for which a machine may have no compiler.
    compile_with = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Sequential, "compile", compile_with)
    weights = []
    for compiled in (False, True):
        torch.compiler.reset()
        trainer = make_trainer(
            tmp_path / str(compiled), compile=compiled, attack="gradient", steps=3
        )
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.parameters])
    assert len(wanted) == 6
    assert all(wanted)
    # Fused kernels round differently; sign(gradient) may flip where the gradient is about 0.
    torch.testing.assert_close(weights[0], weights[1], atol=1e-3, rtol=1e-3)


def _leaves(node):
    """The tensors whose `.grad` a backward pass from here would fill."""
    if node is None:
        return []
    here = [node.variable] if hasattr(node, "variable") else []
    return here + [leaf for after, _ in node.next_functions for leaf in _leaves(after)]
