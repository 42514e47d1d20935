"""The command `latent-robust`."""

from __future__ import annotations

import argparse
import sys

from latent_robust import __version__
from latent_robust.errors import InputError, did_you_mean

from . import attack, audit, contaminate, evaluate, memorization, recommend, report, sample
from .exit_codes import WRONG_INPUT, run_command

COMMANDS = {
    "recommend": recommend,
    "contaminate": contaminate,
    "audit": audit,
    "sample": sample,
    "evaluate": evaluate,
    "report": report,
    "attack": attack,
    "memorization": memorization,
}
START = """\
Type one of these first:
  train-pixel                                     a demo on digits, minutes on a CPU
  finetune-latent --lora                          a demo of a LoRA, minutes on a CPU
  latent-robust recommend --data DIR --size 64    how noisy are my images?
  latent-robust --help                            all commands
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(message)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(f"latent-robust {__version__}: diffusion models from dirty training data\n\n{START}")
        return WRONG_INPUT
    return run_command(lambda: _run(argv))


def _run(argv: list[str]) -> int:
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS) or ";"
        raise InputError(
            f"no command {argv[0]!r}{hint} there are {', '.join(COMMANDS)}, and train-pixel and "
            "finetune-latent"
        )
    options, unknown = _parser().parse_known_args(argv)
    if unknown:
        raise InputError(
            f"unknown option {unknown[0]}; `latent-robust {argv[0]} --help` lists the valid ones"
        )
    options.check(options)
    if "device" in options:
        from latent_robust.training.device import choose_device

        options.device = choose_device(options.device)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="latent-robust",
        description="Diffusion models that learn clean images from dirty training data.",
        epilog=START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"latent-robust {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split(": ", 1)[1].strip().rstrip(".")
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_options(command)
        command.set_defaults(check=module.check, run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
