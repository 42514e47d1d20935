import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from tiny import Points, Recording, make_trainer
from torch import nn

from latent_robust.core import Levels
from latent_robust.core.batch import Loss
from latent_robust.errors import Diverged, InputError
from latent_robust.training import loop
from latent_robust.training.batches import UsableBatches
from latent_robust.training.checkpoint import list_checkpoints, load_checkpoint, load_latest
from latent_robust.training.config import TrainConfig
from latent_robust.training.continuation import identity
from latent_robust.training.log import RunLog
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


def run_tiny(out, steps, *more, **environment):
    return subprocess.Popen(
        [sys.executable, str(TINY), str(out), str(steps), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
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


def test_ranks_draw_different_numbers_and_learn_the_same_weights(tmp_path):
    """Two gloo processes, as torchrun starts them. The weights are equal bit for bit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        run_tiny(tmp_path, 4, "record", RANK=str(rank), LOCAL_RANK=str(rank), **together)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()  # one that still waits for the other
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    drawn = {key for key in first if key.startswith("drawn/")}
    for key in drawn:
        for step in range(4):
            assert not torch.equal(first[key][step], second[key][step]), (key, step)
    for key in first.keys() - drawn:
        assert torch.equal(first[key], second[key]), key
    assert any(value.any() for key, value in first.items() if key.endswith("exp_avg"))


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


@pytest.mark.parametrize("at_once", [True, False])
def test_an_optimizer_that_is_not_fused_is_not_asked_to_take_a_bad_step(
    tmp_path, monkeypatch, at_once
):
    """MPS and 8-bit Adam. Before and after it there are good steps."""
    monkeypatch.setattr(
        loop,
        "make_optimizer",
        lambda config, p, device: torch.optim.AdamW(p, config.learning_rate, fused=False),
    )
    trainer = make_trainer(tmp_path, warmup=0)
    trainer.bad_steps.at_once = at_once
    trainer.network.train()
    batches, values = trainer.batches(), trainer.task.dataset.values
    good = values.clone()
    states = []
    for content in (good, torch.full_like(good, float("nan")), good):
        values.copy_(content)
        trainer.train_step(batches)
        state = capture(trainer)
        moments = state.optimizer["state"].items()
        states.append(
            {
                **{f"model/{name}": value.clone() for name, value in state.model.items()},
                **{f"ema/{name}": value.clone() for name, value in state.ema.items()},
                **{f"{n}/{key}": value.clone() for n, m in moments for key, value in m.items()},
            }
        )
        trainer.step += 1
    before, bad, after = states
    assert all(torch.equal(before[key], bad[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())
    assert not any(torch.equal(bad[key], after[key]) for key in bad)


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


def by_plain_descent(monkeypatch):
    """AdamW's step hardly depends on the size of the gradient; that of SGD is in proportion to it,
    so that it shows what happened to the gradient."""

    def make(config, parameters, device):
        return torch.optim.SGD(parameters, config.learning_rate)

    monkeypatch.setattr(loop, "make_optimizer", make)


def huge_points():
    points = Points()
    points.values *= 1000
    return points


def unclipped_gradient(trainer):
    """Of the next batch, which remains the next one."""
    trainer._backward(next(trainer.batches()), 0)
    gradient = [p.grad.clone() for p in trainer.parameters]
    trainer.optimizer.zero_grad(set_to_none=True)
    return gradient


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_a_step_at_a_huge_loss_goes_along_the_clipped_gradient(tmp_path, monkeypatch, limit):
    """As torch's own clipping and SGD do on a copy; below the limit the gradient stays as it is."""
    by_plain_descent(monkeypatch)
    trainer = make_trainer(tmp_path, dataset=huge_points(), warmup=0, max_gradient_norm=limit)
    trainer.network.train()
    copies = [nn.Parameter(p.detach().clone()) for p in trainer.parameters]
    for copy, gradient in zip(copies, unclipped_gradient(trainer), strict=True):
        copy.grad = gradient
    norm = nn.utils.clip_grad_norm_(copies, limit)
    assert 1e3 < norm < 1e9
    torch.optim.SGD(copies, trainer.config.learning_rate).step()
    row = trainer.train_step(trainer.batches())
    assert torch.equal(row["gradient_norm"], norm)
    for parameter, copy in zip(trainer.parameters, copies, strict=True):
        assert torch.equal(parameter, copy)


def test_the_optimizer_sees_the_clipped_gradient(tmp_path):
    """AdamW's first moment after one step is (1 - 0.9) of the gradient."""
    trainer = make_trainer(tmp_path, dataset=huge_points(), warmup=0, max_gradient_norm=0.5)
    trainer.network.train()
    trainer.train_step(trainer.batches())
    moments = [trainer.optimizer.optimizer.state[p]["exp_avg"] for p in trainer.parameters]
    norm = torch.stack([moment.norm() for moment in moments]).norm()
    # torch divides by the norm + 1e-6.
    torch.testing.assert_close(norm, torch.tensor(0.1 * 0.5), rtol=1e-4, atol=0)


class MeanSquare:
    """An objective without random numbers."""

    penalty = None

    def __call__(self, denoise, sample, t, noise, generator=None, **_):
        answers = denoise(sample, t, torch.arange(len(t)))
        return Loss(answers.square().flatten(1).mean(1), sample.new_zeros(0))


@pytest.mark.parametrize(("size", "accumulation"), [(3, 2), (2, 3)])
def test_accumulated_batches_train_as_one_batch_of_all(tmp_path, monkeypatch, size, accumulation):
    by_plain_descent(monkeypatch)

    def trained(name, **settings):
        trainer = make_trainer(tmp_path / name, dropout=0.0, max_gradient_norm=1e9, **settings)
        trainer.objective = MeanSquare()
        before = [p.detach().clone() for p in trainer.parameters]
        assert trainer.train()
        assert not any(map(torch.equal, before, trainer.parameters))
        rows = map(json.loads, (tmp_path / name / "log.jsonl").open())
        logged = [[row["loss"], row["gradient_norm"]] for row in rows]
        return capture(trainer), torch.tensor(logged)

    (parts, logged), (whole, expected) = (
        trained("parts", batch_size=size, gradient_accumulation=accumulation),
        trained("whole", batch_size=size * accumulation),
    )
    # float32 sums in another order, over 12 steps.
    torch.testing.assert_close(logged, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(parts.model, whole.model, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.ema, whole.ema, rtol=1e-4, atol=1e-6)


def test_each_micro_batch_of_each_step_draws_numbers_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation=2, steps=3)
    trainer.objective = recording = Recording(trainer.objective)
    assert trainer.train()
    drawn = torch.stack(recording.times), torch.stack(recording.noise), torch.stack(recording.seeds)
    for values in drawn:
        assert len(values) == 6
        assert len(values.unique(dim=0)) == 6


def test_each_sample_comes_with_its_own_level_and_at_a_time_that_suits_it(tmp_path):
    levels = Levels(torch.arange(37.0) / 37)
    trainer = make_trainer(tmp_path, objective="ddpm", levels=levels, gradient_accumulation=2)
    trainer.objective = recording = Recording(trainer.objective)
    assert trainer.train()
    seen = trainer.task.dataset.seen
    assert [given.level.tolist() for given in recording.levels] == [
        levels.level[indices].tolist() for indices in seen
    ]
    for given, t in zip(recording.levels, recording.times, strict=True):
        alpha, sigma = trainer.task.process.alpha_sigma(t)
        assert (sigma / alpha >= given.usable_from - 1e-6).all()


def test_few_clean_samples_are_not_drawn_over_and_over(tmp_path):
    """Then samples come first; never one that is never used, but also noisy ones at any time."""
    levels = Levels(torch.zeros(37), torch.tensor([0.0] * 2 + [0.5] * 30 + [torch.inf] * 5))
    settings = {"objective": "ddpm", "levels": levels, "batch_size": 5}
    assert isinstance(make_trainer(tmp_path / "a", steps=120, **settings).plan, UsableBatches)
    plan = make_trainer(tmp_path / "b", steps=121, **settings).plan
    assert not isinstance(plan, UsableBatches)
    seen = [index for number in range(64) for index in plan.batch(number)]
    assert Counter(seen) == dict.fromkeys(range(32), 10)


def test_an_auxiliary_loss_is_added_to_the_objectives(tmp_path, monkeypatch):
    """Its gradient here is that of three times the sum of the last bias: 3."""
    gradients = []
    for weight in (0.0, 3.0):
        trainer = make_trainer(tmp_path / str(weight))
        bias = trainer.parameters[-1]
        monkeypatch.setattr(
            trainer.task, "auxiliary_loss", lambda *_, b=bias, w=weight: w * b.sum()
        )
        trainer.network.train()
        gradients.append(unclipped_gradient(trainer))
    *others, bias = (after - before for before, after in zip(*gradients, strict=True))
    torch.testing.assert_close(bias, torch.full_like(bias, 3.0), atol=1e-5, rtol=0)
    assert not any(other.any() for other in others)


def penalized_rows(tmp_path, monkeypatch, **settings):
    """=>  how many rows of each optimizer step the penalty looks at."""
    trainer = make_trainer(tmp_path, **settings)
    of_branches, rows = trainer.objective.penalty.of_branches, []

    def counted(branches, attacked, noisy, *args, **options):
        rows[-1] += len(noisy)
        return of_branches(branches, attacked, noisy, *args, **options)

    monkeypatch.setattr(trainer.objective.penalty, "of_branches", counted)
    trainer.network.train()
    batches = trainer.batches()
    while trainer.step < trainer.config.steps:
        rows.append(0)
        trainer.train_step(batches)
        trainer.step += 1
    return rows


@pytest.mark.parametrize(
    ("size", "accumulation", "fraction"),
    [(1, 2, 0.25), (1, 4, 0.25), (1, 4, 0.375), (2, 2, 0.375), (1, 5, 0.3), (3, 2, 0.25)],
)
def test_with_accumulation_each_step_has_as_many_penalties_as_without(
    tmp_path, monkeypatch, size, accumulation, fraction
):
    share = {"penalty_fraction": fraction, "penalty_every": 1}
    parts = {"batch_size": size, "gradient_accumulation": accumulation}
    whole = {"batch_size": size * accumulation}
    found = penalized_rows(tmp_path / "parts", monkeypatch, **parts, **share)
    assert found == penalized_rows(tmp_path / "whole", monkeypatch, **whole, **share)
    assert sum(found) == int(12 * fraction * size * accumulation)


def test_every_second_of_two_micro_batches_is_penalized_in_every_step(tmp_path, monkeypatch):
    share = {"penalty_fraction": 0.5, "penalty_every": 2}
    parts = {"batch_size": 4, "gradient_accumulation": 2}
    assert penalized_rows(tmp_path, monkeypatch, **parts, **share) == [4] * 12


def test_the_bias_of_the_radius_is_new_in_each_step_and_sample(tmp_path, monkeypatch):
    """At r = bias, since the scale is 0."""
    trainer = make_trainer(
        tmp_path, radius_scale=0.0, bias_min=0.1, bias_max=0.3, penalty_fraction=1.0
    )
    radius, seen = trainer.objective.penalty.radius, []

    def recorded(sigma, generator=None):
        seen.append(radius(sigma, generator))
        return seen[-1]

    monkeypatch.setattr(trainer.objective.penalty, "radius", recorded)
    assert trainer.train()
    biases = torch.stack(seen).flatten()
    assert len(biases) == 12 * 5
    assert len(biases.unique()) > 55  # of 60 float32 numbers a few may be equal, not more
    assert biases.min() >= 0.1
    assert biases.max() <= 0.3


@pytest.mark.parametrize("change", [{"seed": 5}, {"batch_size": 6}, {"weight": 1.0}])
def test_resuming_with_other_settings_is_refused_with_the_difference(tmp_path, change):
    make_trainer(tmp_path, steps=4).train()
    with pytest.raises(InputError, match=rf"{next(iter(change))}: .* in the saved run"):
        make_trainer(tmp_path, steps=4, resume="auto", **change)


def test_resuming_on_changed_data_is_refused(tmp_path):
    make_trainer(tmp_path, steps=4).train()
    wanted = r"data fingerprint: 'points' in the saved run, 'other points' now"
    with pytest.raises(InputError, match=wanted):
        make_trainer(tmp_path, steps=4, resume="auto", fingerprint="other points")
    assert make_trainer(tmp_path, steps=4, resume="auto").step == 4


def test_levels_and_processes_bind_a_run_as_its_data_do(tmp_path):
    """The content of the file, not its name."""

    def identity_of(text, processes=1):
        (tmp_path / "levels.jsonl").write_text(text)
        config = TrainConfig(objective="ambient", levels=tmp_path / "levels.jsonl")
        return identity(config, "points", processes)

    assert identity_of("a") == identity_of("a")
    assert identity_of("a") != identity_of("b")
    assert identity_of("a") != identity_of("a", processes=2)


def test_a_network_is_not_said_to_have_taken_fewer_steps_than_it_has(tmp_path):
    make_trainer(tmp_path, steps=4).train()
    with pytest.raises(InputError, match="4 steps are taken already, more than --steps 3"):
        make_trainer(tmp_path, steps=3, resume="auto")


def test_what_a_run_is_resumed_from_must_be_there(tmp_path):
    """Its own directory need not hold a checkpoint yet, if it is not finished."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for wanted in ("auto", str(empty)):
        assert make_trainer(empty, resume=wanted).step == 0
    with pytest.raises(InputError, match="holds no valid checkpoint"):
        make_trainer(tmp_path / "other", resume=str(empty))
    (empty / "metrics.json").touch()
    for wanted in ("auto", str(empty)):
        with pytest.raises(InputError, match="finished"):
            make_trainer(empty, resume=wanted)


def test_tensorboard_is_given_what_the_log_has(tmp_path, monkeypatch):
    """But for what is not finite, which it cannot show."""
    trainer = make_trainer(tmp_path, dataset=Points(count=60, bad=[7]))
    given = {}
    monkeypatch.setattr(
        trainer.accelerator, "log", lambda values, step: given.setdefault(step, values)
    )
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert {row["step"] for row in rows} == given.keys()
    for row in rows:
        finite = {key: value for key, value in row.items() if value is not None and key != "step"}
        assert given[row["step"]] == finite
    assert sum(None in row.values() for row in rows) == 1


def test_the_speed_counts_the_samples_of_all_processes(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, gradient_accumulation=2, steps=3)
    counted = []
    monkeypatch.setattr(RunLog, "write", lambda self, step: counted.append(self.samples) or {})
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 4))
    assert trainer.train()
    assert counted == [40, 80, 120]  # 5 samples, of 2 micro-batches, of 4 processes


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


def test_going_back_twice_keeps_what_was_left_last(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for _ in range(2):
        make_trainer(tmp_path, steps=12, keep_checkpoints=3, resume="auto").train()
        checkpoint = checkpoints / "step-00000012"
        (checkpoint / "mine").touch()
        make_trainer(tmp_path, resume=str(checkpoints / "step-00000008"))
    assert (checkpoints / "abandoned-step-00000012" / "mine").exists()
    assert not checkpoint.exists()


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
