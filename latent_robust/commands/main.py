"""The command `latent-robust` and its subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from latent_robust import __version__
from latent_robust.errors import InputError, did_you_mean

from . import attack, audit, contaminate, evaluate, memorization, recommend, report, sample
from .exit_codes import WRONG_INPUT, run_command
from .options import MORE, HelpFormatter, add_help_and_version

# Each module has SUMMARY, USAGE, EXAMPLES, add_options(parser), check(options) and run(options).
# `check` raises InputError and imports no torch; `run` returns the exit code.
COMMANDS = {
    "recommend": recommend,
    "audit": audit,
    "sample": sample,
    "evaluate": evaluate,
    "report": report,
    "contaminate": contaminate,
    "attack": attack,
    "memorization": memorization,
}
ABOUT = "diffusion models that learn clean images from contaminated training data"
START = """\
Start with one of these:
  train-pixel                                     demo: digits, minutes on a CPU
  finetune-latent --lora                          demo: a LoRA for a tiny model, minutes on a CPU
  latent-robust audit DIR --size 512              what is wrong with my images?
  latent-robust --help                            all commands
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(f"latent-robust {__version__}: {ABOUT}\n\n{START}")
        return WRONG_INPUT
    return run_command(lambda: _run(argv))


def _run(argv: list[str]) -> int:
    name, *words = argv
    parser, commands = _parsers()
    if name in commands:
        _refuse_unknown_options(words, name, commands[name])
    elif not name.startswith("-"):
        hint = did_you_mean(name, COMMANDS) or ";"
        raise InputError(
            f"unknown command {name!r}{hint} the commands are {', '.join(COMMANDS)}; to train, use "
            "train-pixel or finetune-latent"
        )
    options = parser.parse_args(argv)
    options.check(options)
    if "device" in options:
        from latent_robust.training.device import choose_device

        options.device = choose_device(options.device)
    return options.run(options)


def _refuse_unknown_options(
    words: Sequence[str], name: str, command: argparse.ArgumentParser
) -> None:
    """argparse would name a missing option before a misspelled one."""
    valid = [option for action in command._actions for option in action.option_strings]
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in valid:
            hint = did_you_mean(option, valid) or f"; see `latent-robust {name} --help`"
            raise InputError(f"unknown option {option}{hint}")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """=>  the parser of the command line, and those of the subcommands by name."""
    parser = _Parser(
        prog="latent-robust",
        usage="latent-robust COMMAND [options]",
        description=_description(),
        epilog=START,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", help=argparse.SUPPRESS, parser_class=_Parser
    )
    add_help_and_version(parser.add_argument_group(MORE))
    commands = {}
    for name, module in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            usage=f"latent-robust {name} {module.USAGE}",
            description=_sentence(module.SUMMARY),
            epilog=module.EXAMPLES,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        module.add_options(command)
        command.set_defaults(check=module.check, run=module.run)
        commands[name] = command
    return parser, commands


def _description() -> str:
    rows = [f"  {name:14}{module.SUMMARY}" for name, module in COMMANDS.items()]
    return "\n".join([_sentence(ABOUT), "", "commands:", *rows])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
