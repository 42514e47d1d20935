"""The commands `latent-robust` and `finetune-latent`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import write_json
from .probes import add_probes, audit_pictures
from .training.command import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from .core import Weighting
    from .data.corruption import Corruption

PAIRS_HELP = (
    "a folder with metadata.jsonl, .csv, .parquet or .txt, .caption files beside its pictures, "
    "parquet:FILE, wds:SHARDS, or hf:NAME[:SPLIT]"
)
DATA_HELP = "digits, fashion-mnist:DIR, parquet:FILE, a folder of pictures, or hf:NAME[:SPLIT]"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    return run_command(lambda: options.work(options))


def finetune_latent(argv: list[str] | None = None) -> int:
    from .latent.train import main as train

    return train(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latent-robust", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    contaminate = _command(commands, "contaminate", _contaminate, "make a dirty copy of pictures")
    contaminate.add_argument(
        "--data", required=True, help=f"{DATA_HELP}; with --pairs: {PAIRS_HELP}"
    )
    contaminate.add_argument(
        "--contamination", required=True, help="e.g. 'gaussian:fraction=0.9,sigma=0.2'"
    )
    contaminate.add_argument("--out", type=Path, required=True, help="a new or empty directory")
    contaminate.add_argument("--size", type=int, help="pixels a side, for pictures")
    contaminate.add_argument("--channels", type=int, choices=(1, 3), default=3)
    contaminate.add_argument("--limit", type=int, help="only the first N pictures")
    contaminate.add_argument("--seed", type=int, default=0)
    contaminate.add_argument("--offline", action="store_true")
    pairs = contaminate.add_argument_group("pairs of pictures and captions")
    pairs.add_argument("--pairs", action="store_true", help="the data are pairs")
    pairs.add_argument("--resolution", type=int, help="pixels a side, or root of a bucket's area")
    pairs.add_argument("--buckets", action="store_true", help="keep the pictures' shapes, nearly")
    pairs.add_argument("--caption-column", help="default: text, caption, ...")
    pairs.add_argument("--model", help="whose encoder encoder-poison attacks: a path or hub name")

    recommend = _command(
        commands, "recommend", _recommend, "a weight and a band for pictures, before training"
    )
    recommend.add_argument("--data", required=True, help=DATA_HELP)
    recommend.add_argument("--size", type=int, required=True, help="pixels a side, as trained on")
    recommend.add_argument("--channels", type=int, choices=(1, 3), default=3)
    recommend.add_argument("--limit", type=int, help="only the first N pictures")
    recommend.add_argument(
        "--objective",
        choices=("robust-adversarial", "robust-random"),
        default="robust-adversarial",
        help="robust-adversarial (default) or robust-random",
    )
    recommend.add_argument(
        "--parameterization",
        choices=("epsilon", "v_prediction", "sample", "flow"),
        default="epsilon",
        help="what the network predicts (default: epsilon)",
    )
    recommend.add_argument(
        "--try",
        dest="tried",
        type=_weighting,
        action="append",
        default=[],
        metavar="WEIGHT,BAND",
        help="forecast these, too; may be repeated",
    )
    recommend.add_argument("--contamination", default="none", help="of an experiment")
    recommend.add_argument("--seed", type=int, default=0, help="of the contamination")
    recommend.add_argument("--out", type=Path, help="also write a JSON file")
    recommend.add_argument("--offline", action="store_true")

    sample = _command(commands, "sample", _sample, "draw pictures from a finished run")
    sample.add_argument("run", type=Path, help="a run directory")
    sample.add_argument("--out", type=Path, required=True, help="a PNG file for the grid")
    sample.add_argument("--count", type=int, default=64)
    _add_sampling(sample)
    sample.add_argument("--prompt", action="append", help="latent runs; may be repeated")
    sample.add_argument("--guidance", type=float, help="latent runs (default: the run's)")
    sample.add_argument("--offline", action="store_true")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")

    evaluate = _command(commands, "evaluate", _evaluate, "compare pictures with clean ones")
    evaluate.add_argument("pictures", help="a run directory, or pictures as for --reference")
    evaluate.add_argument(
        "--reference",
        help=f"clean pictures: {DATA_HELP} (default: the run's, before it contaminated them)",
    )
    evaluate.add_argument("--features", help="comma-separated (default: the run's, or pixels)")
    evaluate.add_argument("--weights", type=Path, help="weights file of the inception features")
    evaluate.add_argument(
        "--samples", type=int, default=2000, help="drawn from a run; evenly spaced ones of a set"
    )
    _add_sampling(evaluate)
    evaluate.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")
    evaluate.add_argument("--size", type=int, help="pixels a side (default: the run's)")
    evaluate.add_argument("--channels", type=int, choices=(1, 3), help="default: the run's, or 3")
    evaluate.add_argument("--out", type=Path, help="a JSON file (default: printed)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--offline", action="store_true")

    report = _command(commands, "report", _report, "one page that puts runs side by side")
    report.add_argument("runs", type=Path, nargs="+", help="run directories")
    report.add_argument("--out", type=Path, default=Path("report.html"))
    report.add_argument("--title")

    add_probes(partial(_command, commands))

    audit = _command(commands, "audit", _audit, "let a model judge the data it was trained on")
    audit.add_argument("run", type=Path, help="directory of a finished run")
    audit.add_argument("--out", type=Path, help="a JSONL file (default: audit.jsonl in the run)")
    audit.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")
    audit.add_argument("--offline", action="store_true")
    return parser


def _command(commands, name: str, work, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(work=work)
    return command


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="sampling steps (default: the run's)")
    parser.add_argument(
        "--sampler", choices=("ddim", "ddpm"), help="pixel runs (default: the run's)"
    )
    parser.add_argument(
        "--stop-at",
        type=float,
        help="pixel runs: end the sampler at this noise level, with its clean estimate there "
        "(default: the run's)",
    )


def _contaminate(options: argparse.Namespace) -> int:
    from .data import (
        contaminate_folder,
        open_pictures,
        parse_contamination,
        split_contamination,
    )

    corruptions = parse_contamination(split_contamination(options.contamination))
    if options.pairs:
        return _contaminate_pairs(options, corruptions)
    if options.size is None:
        raise InputError("contaminate needs --size, or --pairs and --resolution")
    for name in ("resolution", "buckets", "caption_column", "model"):
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} is for pairs: add --pairs, or leave it")
    pictures = open_pictures(
        options.data,
        size=options.size,
        channels=options.channels,
        limit=options.limit,
        offline=options.offline,
    )
    contaminate_folder(pictures, corruptions, options.seed, options.out)
    print(f"{len(pictures)} pictures and their manifest are in {options.out}")
    _name_left_out(pictures.quarantine)
    return 0


def _contaminate_pairs(options: argparse.Namespace, corruptions: list[Corruption]) -> int:
    from .data import ContaminatedPairs, contaminate_pairs, make_buckets, open_pairs

    if options.resolution is None or options.size is not None or options.channels != 3:
        raise InputError("--pairs needs --resolution, and goes without --size and --channels")
    buckets = make_buckets(options.resolution, max_ratio=2.0 if options.buckets else 1.0)
    pairs = open_pairs(
        options.data,
        caption_column=options.caption_column,
        limit=options.limit,
        offline=options.offline,
    )
    encode = None if options.model is None else _encoder(options.model, options.offline)
    samples = ContaminatedPairs(
        pairs, corruptions, options.seed, buckets, encode, offline=options.offline
    )
    contaminate_pairs(samples, options.out)
    print(f"{pairs.summary()}; contaminated with their manifest in {options.out}")
    _name_left_out(pairs.quarantine)
    for name in pairs.without_picture:
        print(f"left out: {name}: its picture does not exist")
    return 0


def _encoder(model: str, offline: bool) -> Callable[[Tensor], Tensor]:
    """=>  what encoder-poison attacks: samples to the means of their latents."""
    from .latent.components import load_components

    components = load_components(model, offline=offline)
    return lambda samples: components.encode_pictures(samples)[0]


def _name_left_out(quarantine: list[dict]) -> None:
    for row in quarantine:
        print(f"left out: {row['name']}: {row['reason']}")


def _weighting(text: str) -> Weighting:
    from .core import Weighting

    try:
        weight, band = (float(part) for part in text.split(","))
        return Weighting("band", weight, band)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs WEIGHT,BAND, e.g. 3,0.5: {error}") from None


def _recommend(options: argparse.Namespace) -> int:
    from .data import (
        ContaminatedPictures,
        open_pictures,
        parse_contamination,
        pictures_to_look_at,
        recommend,
        split_contamination,
    )

    pictures = open_pictures(
        options.data,
        size=options.size,
        channels=options.channels,
        limit=options.limit,
        offline=options.offline,
    )
    corruptions = parse_contamination(split_contamination(options.contamination))
    dirty = ContaminatedPictures(pictures, corruptions, options.seed)
    samples = dirty.sample_tensor(limit=pictures_to_look_at(options.size, options.channels))
    if len(samples) < 2:
        raise InputError(f"{options.data} has one picture; a spectrum takes some dozens at least")
    kind = (options.objective.removeprefix("robust-"), options.parameterization)
    found = recommend(samples, *kind)
    print(f"{len(samples):,} of {len(dirty):,} pictures\n{found.summary()}")
    for weighting in options.tried:
        print(
            f"weight {weighting.weight:g}, band {weighting.band:g}: forecast "
            f"{found.spectrum.distance(weighting, *kind):.3g}"
        )
    if found.weighting is not None:
        told = ["train-pixel"]
        usual = {"contamination": "none", "limit": None, "seed": 0, "parameterization": "epsilon"}
        for name in ("data", "size", "channels", "objective", *usual):
            if getattr(options, name) != usual.get(name, ""):
                told += [f"--{name}", str(getattr(options, name))]
        told += ["--weight", f"{found.weighting.weight:g}", "--band", f"{found.weighting.band:g}"]
        print(f"\n{shlex.join(told)}")
    if options.out is not None:
        write_json(options.out, found.facts())
    return 0


def _sample(options: argparse.Namespace) -> int:
    from .evaluation.figures import save_grid

    save_grid(_draw(options.run, options.count, options.seed, options), options.out)
    print(f"{options.count} pictures are in {options.out}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from .evaluation.features import make_extractor
    from .evaluation.metrics import REFERENCE, evaluate

    run = Path(options.pictures)
    config = _run_config(run) if (run / "config.yaml").exists() else {}
    reference = options.reference or config.get("reference") or config.get("data")
    size = options.size or config.get("size") or config.get("resolution")
    if reference is None or size is None:
        raise InputError(f"{run} is not a run directory: give --reference and --size as well")
    channels = options.channels or config.get("channels", 3)
    features = options.features.split(",") if options.features else config.get("features")
    extractors = [
        make_extractor(
            spec, device=options.device, weights=options.weights, offline=options.offline
        )
        for spec in features or ["pixels"]
    ]
    count = max(REFERENCE, options.samples)
    if "model" in config and options.reference is None:
        from .latent.finished import clean_pictures

        clean = clean_pictures(config, count, offline=options.offline)
    else:
        clean = _pictures(reference, size, channels, count, options.offline)
    if config:
        samples = _draw(run, options.samples, options.seed, options)
    else:
        for name in ("steps", "sampler", "stop_at"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for runs, which draw pictures")
        samples = _pictures(options.pictures, size, channels, options.samples, options.offline)
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
        found, samples = audit_pictures(options.run, run, options.device, options.offline)
    found.write(out, samples.name)
    print(f"{found.summary()}\neach sample's score and level are in {out}")
    return 0


def _run_config(run: Path) -> dict[str, Any]:
    from .evaluation.runs import read_runs

    return read_runs([run])[0].config


def _pictures(spec: str, size: int, channels: int, count: int, offline: bool) -> Tensor:
    """At most `count`, evenly spaced."""
    from .data import ContaminatedPictures, open_pictures

    pictures = open_pictures(spec, size=size, channels=channels, offline=offline)
    return ContaminatedPictures(pictures, [], 0).clean_tensor(count)


def _draw(run: Path, count: int, seed: int, options: argparse.Namespace) -> Tensor:
    config = _run_config(run)
    if "model" in config:
        for name in ("sampler", "stop_at"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for pixel runs, and {run} is none")
        from .latent.finished import draw_from_run

        return draw_from_run(
            run,
            config,
            count,
            prompts=getattr(options, "prompt", None),
            steps=options.steps,
            guidance=getattr(options, "guidance", None),
            seed=seed,
            device=options.device,
            offline=options.offline,
        )
    from .evaluation.sampling import draw_samples, load_run

    network, scheduler = load_run(run, options.sampler or config["sampler"])
    return draw_samples(
        network.to(options.device),
        scheduler,
        count,
        steps=options.steps or config["sampling_steps"],
        seed=seed,
        device=options.device,
        stop_at=config.get("stop_at") if options.stop_at is None else options.stop_at,
    )


if __name__ == "__main__":
    sys.exit(main())
