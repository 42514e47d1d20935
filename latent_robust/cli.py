"""The commands `latent-robust` and `finetune-latent`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_commands import DATA_HELP, add_data_commands, add_max_bad_fraction
from .errors import InputError, refuse_options
from .files import write_json
from .probes import (
    add_device,
    add_probes,
    audit_pixel_run,
    chosen_sampler,
    pictures_of,
    positive,
)
from .training.command import choose_device, run_command

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: list[str] | None = None) -> int:
    return run_command(partial(_work, _parser().parse_args(argv)))


def _work(options: argparse.Namespace) -> int:
    if "device" in options:
        options.device = choose_device(options.device)
    return options.work(options)


def finetune_latent(argv: list[str] | None = None) -> int:
    from .latent.train import main as train

    return train(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latent-robust", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = partial(_command, commands)
    add_data_commands(command)

    sample = command("sample", _sample, "draw pictures from a finished run")
    sample.add_argument("run", type=Path, help="a run directory")
    sample.add_argument("--out", type=Path, required=True, help="a PNG file for the grid")
    sample.add_argument("--count", type=positive, default=64)
    _add_sampling(sample)
    sample.add_argument("--prompt", action="append", help="latent runs; may be repeated")
    sample.add_argument("--guidance", type=float, help="latent runs (default: the run's)")
    sample.add_argument("--offline", action="store_true")
    sample.add_argument("--seed", type=int, default=0)
    add_device(sample)

    evaluate = command("evaluate", _evaluate, "compare pictures with clean ones")
    evaluate.add_argument("pictures", help="a run directory, or pictures as for --reference")
    evaluate.add_argument(
        "--reference",
        help=f"clean pictures: {DATA_HELP} (default: the run's, before it contaminated them)",
    )
    evaluate.add_argument("--features", help="comma-separated (default: the run's, or pixels)")
    evaluate.add_argument("--weights", type=Path, help="weights file of the inception features")
    evaluate.add_argument(
        "--samples",
        type=positive,
        default=2000,
        help="drawn from a run; evenly spaced ones of a set",
    )
    _add_sampling(evaluate)
    add_device(evaluate)
    evaluate.add_argument("--size", type=int, help="pixels a side (default: the run's)")
    evaluate.add_argument("--channels", type=int, choices=(1, 3), help="default: the run's, or 3")
    add_max_bad_fraction(evaluate)
    evaluate.add_argument("--out", type=Path, help="a JSON file (default: printed)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--offline", action="store_true")

    report = command("report", _report, "one page that puts runs side by side")
    report.add_argument("runs", type=Path, nargs="+", help="run directories")
    report.add_argument("--out", type=Path, default=Path("report.html"))
    report.add_argument("--title")

    add_probes(command)

    audit = command("audit", _audit, "let a model judge the data it was trained on")
    audit.add_argument("run", type=Path, help="directory of a finished run")
    audit.add_argument("--out", type=Path, help="a JSONL file (default: audit.jsonl in the run)")
    add_device(audit)
    audit.add_argument("--offline", action="store_true")
    return parser


def _command(commands, name: str, work, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(work=work)
    return command


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, help="sampling steps (default: the run's)")
    parser.add_argument(
        "--sampler", choices=("ddim", "ddpm"), help="pixel runs (default: the run's)"
    )
    parser.add_argument(
        "--stop-at",
        type=float,
        help="pixel runs: end the sampler at this noise level, with its clean estimate there "
        "(default: the run's)",
    )


def _sample(options: argparse.Namespace) -> int:
    from .evaluation.figures import save_grid

    save_grid(_draw(options.run, _run_config(options.run), options.count, options), options.out)
    print(f"{options.count} pictures are in {options.out}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from .evaluation.features import make_extractors
    from .evaluation.metrics import REFERENCE, evaluate
    from .evaluation.runs import read_runs

    path = Path(options.pictures)
    run = read_runs([path])[0] if (path / "config.yaml").exists() else None
    if run is None:
        refuse_options(options, ("steps", "sampler", "stop_at"), "is for runs, which draw pictures")
    else:
        refuse_options(options, ("size", "channels"), "is the run's own")
    config = {} if run is None else run.config
    reference = options.reference or config.get("reference")
    size = options.size or config.get("size") or config.get("resolution")
    if size is None or (run is None and reference is None):
        raise InputError(f"{path} is not a run directory: give --reference and --size as well")
    channels = options.channels or config.get("channels", 3)
    features = options.features.split(",") if options.features else config.get("features")
    weights = options.weights or config.get("weights")
    extractors = make_extractors(
        features or ["pixels"], device=options.device, weights=weights, offline=options.offline
    )
    count = max(REFERENCE, options.samples)
    if run is not None and run.latent and options.reference is None:
        from .latent.finished import clean_pictures

        clean = clean_pictures(config, count, offline=options.offline)
    elif reference is not None:
        clean = _pictures(options, reference, size, channels, count)
    else:
        clean = pictures_of(run, options.offline, config["data"], config["limit"])
        clean = clean.clean_tensor(count)
    if reference is None and config["contamination"] == "none":
        print(
            f"nothing clean is known of {path}: measured against its own training pictures, dirt "
            "included; give --reference",
            file=sys.stderr,
        )
    if run is not None:
        samples = _draw(path, config, options.samples, options)
    else:
        samples = _pictures(options, options.pictures, size, channels, options.samples)
    metrics = evaluate(samples, clean, extractors, seed=options.seed)
    if options.out is None:
        print(json.dumps(metrics, indent=2))
    else:
        write_json(options.out, metrics)
    return 0


def _report(options: argparse.Namespace) -> int:
    from .evaluation.report import write_report

    print(f"report: {write_report(options.runs, options.out, title=options.title)}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from .evaluation.runs import read_runs

    run = read_runs([options.run])[0]
    out = options.out or options.run / "audit.jsonl"
    if out.exists():
        raise InputError(f"{out} exists already; give another --out")
    if run.latent:
        from .latent.finished import audit_run

        found, samples = audit_run(
            options.run, run.config, device=options.device, offline=options.offline
        )
    else:
        found, samples = audit_pixel_run(options.run, run, options.device, options.offline)
    found.write(out, samples.name)
    print(f"{found.summary()}\neach sample's score and level are in {out}")
    return 0


def _run_config(run: Path) -> dict[str, Any]:
    from .evaluation.runs import read_runs

    return read_runs([run])[0].config


def _pictures(
    options: argparse.Namespace, spec: str, size: int, channels: int, count: int
) -> Tensor:
    """At most `count`, evenly spaced."""
    from .data import ContaminatedPictures, open_pictures

    pictures = open_pictures(
        spec,
        size=size,
        channels=channels,
        max_bad_fraction=options.max_bad_fraction,
        offline=options.offline,
    )
    return ContaminatedPictures(pictures, [], 0).clean_tensor(count)


def _draw(run: Path, config: dict[str, Any], count: int, options: argparse.Namespace) -> Tensor:
    """config: the run's."""
    if "model" in config:
        why = f"is for pixel runs, and {run} is none"
        refuse_options(options, ("sampler", "stop_at"), why)
        from .latent.finished import draw_from_run

        return draw_from_run(
            run,
            config,
            count,
            prompts=getattr(options, "prompt", None),
            steps=options.steps,
            guidance=getattr(options, "guidance", None),
            seed=options.seed,
            device=options.device,
            offline=options.offline,
        )
    refuse_options(options, ("prompt", "guidance"), f"is for latent runs, and {run} is none")
    from .evaluation.sampling import draw_samples, load_run

    network, scheduler = load_run(run, chosen_sampler(options, config))
    return draw_samples(
        network.to(options.device),
        scheduler,
        count,
        steps=options.steps or config["sampling_steps"],
        seed=options.seed,
        device=options.device,
        stop_at=config.get("stop_at") if options.stop_at is None else options.stop_at,
    )


if __name__ == "__main__":
    sys.exit(main())
