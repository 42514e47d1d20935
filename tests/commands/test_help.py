"""Help is complete and short, and wrong input is refused before torch is imported."""

import re
import subprocess
import sys

import pytest

from latent_robust.commands import finetune_latent, train_pixel
from latent_robust.commands.main import COMMANDS, main

MOST_USED = 26  # options that --help of a training command shows, its own three aside


def help_of(run, argv, capsys):
    with pytest.raises(SystemExit) as left:
        run(argv)
    assert left.value.code == 0
    return capsys.readouterr().out


def options_of(text):
    """Option -> the words next to it, from a help text."""
    items = re.split(r"^  (?=-)", text.partition("\nexamples:")[0], flags=re.MULTILINE)[1:]
    return {item.split()[0].rstrip(","): " ".join(item.split()[1:]) for item in items}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_word_and_a_sentence(command, capsys):
    text = help_of(main, [command, "--help"], capsys)
    assert COMMANDS[command].USAGE in text
    assert "{" not in text  # the lists of choices that argparse prints for a metavar
    for option, words in options_of(text).items():
        assert len(words.split()) >= 3, option
    assert f"  latent-robust {command} " in text.partition("examples:")[2]


@pytest.mark.parametrize("command", [train_pixel, finetune_latent])
def test_help_of_training_shows_the_most_used_options(command, capsys):
    most_used = options_of(help_of(command.main, ["--help"], capsys))
    every = options_of(help_of(command.main, ["--help-all"], capsys))
    assert len(most_used) - 3 <= MOST_USED  # less --help, --help-all and --version
    assert most_used.keys() < every.keys()
    for option, words in every.items():
        assert len(words.split()) >= 2, option


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sampel"], "unknown command 'sampel'; did you mean 'sample'?"),
        # argparse would name the missing --out first.
        (["sample", "--cuont=3"], "unknown option --cuont; did you mean '--count'?"),
        (["report", "--zzz"], "see `latent-robust report --help`"),
        (["sample", "nowhere", "--out=x.png"], "nowhere is not a run directory"),
        (["audit", "runs/digit"], "did you mean 'digits'?"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["attack", "nowhere", "--out=x.json"], "nowhere is not a run directory"),
        (["memorization", "nowhere", "--out=x.json"], "nowhere is not a run directory"),
        (["evaluate", "nowhere"], "a run is the directory of a training"),
        (["evaluate", "runs"], "has no config.yaml"),
        (["recommend", "--data=nowhere", "--size=8"], "no such folder or file: 'nowhere'"),
        (["recommend", "--data=runs", "--pairs", "--model=no/such/model"], "does not exist"),
        (["contaminate", "--data=digits", "--contamination=x", "--out=y"], "needs --size"),
    ],
)
def test_wrong_input_is_refused_at_once(argv, message, tmp_path):
    (tmp_path / "runs/digits").mkdir(parents=True)
    (tmp_path / "runs/digits/config.yaml").touch()
    code = (
        "import sys; from latent_robust.commands.main import main\n"
        f"assert main({argv!r}) == 2; assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert message in result.stderr


def test_without_a_command_it_says_what_to_type_first(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(word in out for word in ("train-pixel", "finetune-latent --lora", "--help"))
