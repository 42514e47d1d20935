import re

import pytest
import yaml

from latent_robust.core import NoiseProcess
from latent_robust.errors import InputError
from latent_robust.latent.config import LatentConfig
from latent_robust.limits import MAX_BAD_FRACTION
from latent_robust.training.config import TrainConfig
from latent_robust.training.continuation import configure_continuation, saved_options
from latent_robust.training.directory import choose_directory, refuse_occupied
from latent_robust.training.objectives import build_objective
from latent_robust.training.options import _help, dump, parse_options
from latent_robust.training.plan import plan_runs


def parse(*argv):
    return parse_options(TrainConfig, list(argv), prog="train")


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("steps: 7\nbatch_size: 3\n")
    config = parse("--config", str(file), "--steps", "9")
    assert (config.steps, config.batch_size, config.seed) == (9, 3, 0)


def test_a_key_of_the_file_alone_is_checked_as_well(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("bias_min: 0.5\n")
    with pytest.raises(InputError, match=r"need 0 <= bias_min <= bias_max, got 0\.5"):
        parse("--config", str(file))


def test_environment_variables_do_not_leak_in(monkeypatch):
    monkeypatch.setenv("SEED", "5")
    monkeypatch.setenv("seed", "5")
    assert parse().seed == 0


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    config = parse("--contamination", "gaussian:fraction=0.9,sigma=0.2; blur:fraction=0.1,sigma=1")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    again = parse("--config", str(file))
    assert dump(again) == dump(config)


def test_contamination_may_be_a_list_in_yaml(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"contamination": ["a:fraction=1", "b:fraction=0"]}))
    assert parse("--config", str(file)).contamination == "a:fraction=1; b:fraction=0"
    file.write_text(yaml.safe_dump({"contamination": [{"kind": "blur"}]}))
    with pytest.raises(InputError, match="give each as a text"):
        parse("--config", str(file))


def test_what_yaml_reads_as_false_may_be_the_word_no(tmp_path):
    (tmp_path / "c.yaml").write_text("mixed_precision: no\n")
    assert parse("--config", str(tmp_path / "c.yaml")).mixed_precision == "no"


def test_options_win_over_values_that_stand_in_for_a_file():
    values = {"targets": ["attention", "mlp"], "steps": 7}
    options = ["--targets", '["attention"]']
    config = parse_options(LatentConfig, ["--lora", *options], prog="train", values=values)
    assert (config.targets, config.steps) == (("attention",), 7)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bach-size", "3"], "unknown option --bach-size; did you mean '--batch-size'?"),
        (["--steps", "many"], "`steps` = 'many': should be a valid integer"),
        (["--steps", "0"], "`steps` = '0': should be greater than or equal to 1"),
        (["--objective", "robust"], "`objective` = 'robust': should be 'ddpm'"),
        (["--band", "wide"], "`band` = 'wide'"),
        (["--band", "-1"], "must be > 0, or one such number for each channel, or 'auto'"),
        (["--bias-min", "0.5"], "write `bias_min: VALUE` into --config FILE"),
        (["--objective", "ambient"], "needs noise levels"),
        (["--levels", "audit.jsonl"], "levels are for the objective ambient"),
        (["--config", "nowhere.yaml"], "cannot read --config nowhere.yaml"),
        (["--steps"], "expected one argument"),
    ],
)
def test_wrong_usage_says_what_and_how(argv, message):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "unknown key `batchsize`"),
        ("batchsize: 3", "did you mean 'batch_size'?"),
        ("- 1", "must hold `key: value` lines"),
        ("a: [", "not valid YAML"),
        ("steps: [1]", "`steps` = [1]"),
    ],
)
def test_a_wrong_file_says_what_and_how(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        parse("--config", str(file))
    assert message in str(error.value)


def test_the_commands_on_data_tolerate_as_many_broken_images():
    assert parse().max_bad_fraction == MAX_BAD_FRACTION


def test_resume_needs_no_value():
    assert parse("--resume", "--steps", "3").resume == "auto"
    assert parse("--resume").resume == "auto"
    assert parse("--resume", "runs/x").resume == "runs/x"


def test_a_run_is_never_overwritten(tmp_path):
    assert choose_directory(parse(), "a", tmp_path) == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("")
    assert choose_directory(parse(), "a", tmp_path) == tmp_path / "a-2"
    assert choose_directory(parse("--resume"), "a", tmp_path) == tmp_path / "a"
    with pytest.raises(InputError, match="already holds a run"):
        choose_directory(parse("--out", str(tmp_path / "a")), "a", tmp_path)
    with pytest.raises(InputError, match="nothing to resume"):
        choose_directory(parse("--resume"), "b", tmp_path)


@pytest.mark.parametrize("told", [[], ["--resume"]])
def test_a_folder_that_is_no_run_keeps_what_a_run_would_replace(tmp_path, told):
    (tmp_path / "cache").mkdir()  # a run that was stopped early leaves this
    (tmp_path / "image.png").touch()
    assert choose_directory(parse("--out", str(tmp_path), *told), "a") == tmp_path
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match="not a run directory but contains unet"):
        choose_directory(parse("--out", str(tmp_path), *told), "a")


@pytest.mark.parametrize("what", ["config.yaml", "audit.jsonl", "unet"])
def test_what_lies_where_a_part_would_be_trained_is_kept(tmp_path, what):
    runs = plan_runs(parse("--objective=audited"), tmp_path)
    refuse_occupied(runs)
    (tmp_path / "robust-adversarial").mkdir()
    (tmp_path / "robust-adversarial" / what).touch()
    with pytest.raises(
        InputError, match=r"robust-adversarial.* (already holds|not a run directory)"
    ):
        refuse_occupied(runs)
    resumed = plan_runs(parse("--objective=audited", "--resume"), tmp_path)
    if what == "unet":
        with pytest.raises(InputError, match="not a run directory but contains unet"):
            refuse_occupied(resumed)
    else:
        refuse_occupied(resumed)


def continued(tmp_path, config, *argv):
    (tmp_path / "config.yaml").write_text(dump(config))
    argv = ["--resume", *argv]
    now = parse_options(type(config), argv, prog="train")
    return configure_continuation(now, argv, tmp_path, prog="train")


@pytest.mark.parametrize("told", [{"objective": "audited"}, {"compare_with": "robust-random"}])
def test_the_regularizer_of_a_judge_or_a_neighbour_binds_the_run(tmp_path, told):
    config = TrainConfig(**told, weight=3.0, band=0.5)
    with pytest.raises(InputError, match=r"weight: 3\.0 in the saved run, 4\.0 now"):
        continued(tmp_path, config, "--weight=4")
    assert continued(tmp_path, TrainConfig(weight=3.0), "--weight=4").weight == 4


def test_a_command_is_the_same_without_what_it_compared_with(tmp_path):
    """Applied to its own result, `low_memory` would divide the batch once more."""
    argv = ["--lora", "--low-memory", "--objective=ddpm", "--batch-size=8"]
    config = parse_options(LatentConfig, [*argv, "--compare-with=robust-adversarial"], prog="train")
    found = continued(tmp_path, config, *argv)
    assert (found.batch_size, found.gradient_accumulation) == (1, 8)


def test_a_reference_that_is_added_later_changes_nothing_that_is_trained_on(tmp_path):
    argv = ["--lora", "--data=pairs"]
    begun = parse_options(LatentConfig, argv, prog="train")
    assert begun.held_out == 0.05
    for told in (argv, ["--lora"]):
        assert continued(tmp_path, begun, *told, "--reference=clean").held_out == 0.05
    argv.append("--reference=clean")
    assert parse_options(LatentConfig, argv, prog="train").held_out == 0
    assert parse_options(LatentConfig, [*argv, "--held-out=0.1"], prog="train").held_out == 0.1


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Directories `a`, `b`, of runs, and `empty`; the working directory holds them."""
    for name in ("a", "b", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "config.yaml").write_text(dump(TrainConfig()))
    (tmp_path / "a/checkpoints/step-1").mkdir(parents=True)
    (tmp_path / "a/checkpoints/step-1/manifest.json").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", ""),
        ("--out a", ""),
        ("--resume a", "--config a/config.yaml --out a"),
        ("--resume a/checkpoints/step-1", "--config a/config.yaml --out a"),
        ("--resume --out a", "--config a/config.yaml"),
        ("--resume a --out b", "--config b/config.yaml"),
        ("--resume a --out empty", "--config a/config.yaml"),
        ("--resume a --out b --steps 9", "--config b/config.yaml"),
        ("--resume a --out b --batch-size 9", ""),
        ("--resume a --batch-size 9", "--config a/config.yaml --out a"),
        ("--resume a --config c.yaml", ""),
        ("--resume empty", ""),
        ("--resume", ""),
    ],
)
def test_a_run_that_is_named_gives_its_own_settings(runs, argv, expected):
    assert saved_options(argv.split()) == expected.split()


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"objective": "ddpm"}, None),
        ({"objective": "robust-random"}, {}),
        ({"objective": "robust-random", "weight": 2.0}, {"weight": 2.0}),
        ({"objective": "robust-random", "band": [0.1, 0.2]}, {"band": [0.1, 0.2]}),
        ({"objective": "robust-random", "weight": 2.0, "band": 0.1}, None),
        ({"objective": "ddpm", "compare_with": "robust-random"}, {}),
        ({"objective": "audited"}, {}),
        ({"objective": "audited", "auditor": "ddpm"}, None),
    ],
)
def test_data_are_measured_only_for_what_is_used_and_left_open(settings, given):
    assert TrainConfig(**settings).given_weighting == given


def test_help_says_no_default_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = capsys.readouterr().out
    assert "(default: 5000)" in said
    assert "null" not in said


@pytest.mark.parametrize(
    ("batch", "accumulation", "fraction"),
    [(64, 1, 0.125), (4, 1, 0.125), (1, 4, 0.125), (2, 1, 0.25), (1, 1, 0.5)],
)
def test_the_regularizer_comes_in_every_second_step_at_least(batch, accumulation, fraction):
    """Seldom and heavy does harm: see RESULTS.md, What it costs."""
    config = TrainConfig(
        objective="robust-adversarial",
        weight=3,
        band=0.5,
        batch_size=batch,
        gradient_accumulation=accumulation,
    )
    process = NoiseProcess.flow()
    assert build_objective(config, process).penalty_fraction == fraction


@pytest.mark.parametrize(
    ("settings", "fraction", "every"),
    [
        ({"objective": "robust-adversarial"}, 0.125, 2),
        ({"objective": "robust-random"}, 0.25, 1),
        ({"objective": "audited"}, 0.125, 2),
        ({"objective": "audited", "auditor": "robust-random"}, 0.25, 1),
        ({"objective": "robust-random", "compare_with": "invariance"}, 0.125, 2),
        ({"objective": "robust-random", "penalty_fraction": 0.125}, 0.125, 1),
    ],
)
def test_random_perturbations_are_cheap_enough_for_twice_as_many(settings, fraction, every):
    config = TrainConfig(**settings)
    assert (config.penalty_fraction, config.penalty_every) == (fraction, every)


@pytest.mark.parametrize("fraction, every", [(0.125, 2), (0.5, 2), (0.6, 1), (1.0, 1)])
def test_two_batches_share_a_pass_unless_that_is_more_than_a_batch(fraction, every):
    assert TrainConfig(penalty_fraction=fraction).penalty_every == every
    assert TrainConfig(penalty_fraction=fraction, penalty_every=1).penalty_every == 1


@pytest.mark.parametrize(
    "told, band",
    [
        ("--band=auto", "auto"),
        ("--band=0.3", 0.3),
        ("--band=.3", 0.3),
        ("--band=[0.3]", 0.3),
        ("--band=[0.1, 0.2]", [0.1, 0.2]),
        ("--band=.1,.2", [0.1, 0.2]),
    ],
)
def test_a_band_is_one_number_or_one_for_each_channel(told, band, tmp_path):
    config = parse(told)
    assert config.band == band
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert yaml.safe_load(file.read_text())["band"] == band
    assert parse("--config", str(file)).band == band


def test_help_lists_the_names_to_choose_from_or_nothing(capsys):
    for field in TrainConfig.model_fields.values():
        assert not re.search(r": *(\(default|$)", _help(field))
    assert _help(TrainConfig.model_fields["weighting"]).count("normalized") == 1
