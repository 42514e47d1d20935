"""The steps that `train-pixel` and `finetune-latent` share.

First come settings, help and every check that needs no model, without importing torch. Then a
session (pixel or latent) trains the runs: a baseline, an auditor, and the run itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from latent_robust.data.sources.spec import parse_spec
from latent_robust.latent.base.model_spec import ModelKind, model_kind
from latent_robust.training.continuation import configure_continuation, saved_options
from latent_robust.training.directory import choose_directory, refuse_occupied
from latent_robust.training.options import Config, dump, given_options, parse_options
from latent_robust.training.plan import plan_runs

from .exit_codes import DONE, INTERRUPTED, run_command


@dataclass(frozen=True)
class TrainCommand:
    """A training command.

    prog: its name on the command line. module: its name for `python -m`. demo: settings that are
    used if none of the options in `says_data` is given. says_data: the options that say what to
    train on. check: raises InputError for wrong settings or paths, without opening a model.
    describe: what will happen, as a phrase that begins with a verb. default_name: of the run
    directory. session: "module:Class" of a Session. saves_memory: advice when memory runs out.
    examples: the last lines of the help.
    """

    prog: str
    module: str
    config_class: type
    demo: Mapping[str, Any]
    says_data: frozenset[str]
    check: Callable[[Any], None]
    describe: Callable[[Any], str]
    default_name: Callable[[Any], str]
    session: str
    saves_memory: str
    examples: str


class Session(Protocol):
    """Built on all ranks from (config, out, runs of `plan_runs`, accelerator). Building it raises
    InputError for everything that can be refused before training.

    runs: (configuration, directory) of each run, in the order of training, with all settings
    resolved."""

    runs: Sequence[tuple[Any, Path]]

    def train(self, number: int) -> bool:
        """Train and measure run `number`. False if a signal stopped it."""
        ...

    def what_was_made(self) -> str:
        """Lines for the user: the files of the last run, and what to do with them."""
        ...


def run_training(command: TrainCommand, argv: list[str] | None = None) -> int:
    """=>  exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(command, argv), saves_memory=command.saves_memory)


def configure(command: TrainCommand, argv: list[str]) -> Any:
    """=>  the configuration, an instance of `config_class`."""
    argv = [*saved_options(argv), *argv]
    demo = not given_options(argv) & command.says_data
    return parse_options(
        command.config_class,
        argv,
        prog=command.prog,
        values=command.demo if demo else {},
        examples=command.examples,
    )


def _run(command: TrainCommand, argv: list[str]) -> int:
    config = configure(command, argv)
    command.check(config)
    if config.dry_run:
        print(dump(config), end="")
        print(f"# would {command.describe(config)}")
        for name in on_hub(config):
            print(f"# not checked: whether the Hugging Face Hub has {name}")
        return DONE
    out = choose_directory(config, command.default_name(config))
    if config.resume is not None and (out / "config.yaml").exists():
        config = configure_continuation(config, argv, out, prog=command.prog)
    runs = plan_runs(config, out)
    refuse_occupied(runs)
    return _train_all(command, config, out, runs)


def _train_all(
    command: TrainCommand, config: Config, out: Path, runs: list[tuple[Config, Path]]
) -> int:
    from latent_robust.evaluation.report import metrics_text, write_report
    from latent_robust.training.run import say_how_to_go_on, start_accelerator

    accelerator = start_accelerator(config)
    say = print if accelerator.is_main_process else _silent
    say(f"{command.prog} will {command.describe(config)}; run directory: {out}")
    try:
        session = _make_session(command, config, out, runs, accelerator)
        folders = [folder for _, folder in session.runs]
        for number, folder in enumerate(folders):
            if not session.train(number):
                say_how_to_go_on(command.prog, command.module, out, accelerator)
                return INTERRUPTED
            if accelerator.is_main_process:
                report = write_report(folders[: number + 1], folder / "report.html")
    except KeyboardInterrupt:  # while data are read or audited, or images are generated
        if (out / "config.yaml").exists():
            say_how_to_go_on(command.prog, command.module, out, accelerator)
            return INTERRUPTED
        raise
    if accelerator.is_main_process:
        print(f"\n{metrics_text(folders)}")
        print(f"\n{session.what_was_made()}\nreport: {report}")
    accelerator.end_training()
    return DONE


def _make_session(command: TrainCommand, *args: Any) -> Session:
    module, _, name = command.session.partition(":")
    return getattr(import_module(module), name)(*args)


def check_contamination(spec: str) -> None:
    """Raises InputError for an invalid contamination. Imports torchvision unless it is "none"."""
    if spec != "none":
        from latent_robust.data import parse_contamination

        parse_contamination(spec)


def check_trusted(config: Any, forms: Mapping[str, str]) -> None:
    """Raises InputError for trusted samples that do not exist. Imports torch if there are any."""
    if config.trusted is not None:
        from latent_robust.data.trusted import parse_trusted

        trusted = parse_trusted(config.trusted, config.contamination)
        if trusted.data is not None:
            parse_spec(trusted.data, forms)


def on_hub(config: Any) -> list[str]:
    """What the run would take from the Hugging Face Hub."""
    data = [getattr(config, name, None) or "" for name in ("data", "reference", "trusted")]
    names = [spec.partition(":")[2] for spec in data if spec.startswith("hf:")]
    model = getattr(config, "model", None)
    if model is not None and model_kind(model) is ModelKind.HUB:
        names.append(model)
    return names


def _silent(*_: object) -> None:
    pass
