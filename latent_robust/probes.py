"""The commands that probe finished pixel runs: `latent-robust attack` and `memorization`.

Both put runs side by side, and write what they found as JSON with a figure of the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, refuse_options
from .files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Audit, ContaminatedPictures
    from .evaluation.features import Extractor
    from .evaluation.runs import Run

KINDS = ("random", "fgsm", "pgd")  # evaluation/attack_curves.py: ITERATIONS


def add_probes(command: Callable[..., argparse.ArgumentParser]) -> None:
    """command: (name, what it does, help) => the parser of a new command."""
    attack = command("attack", _attack, "attack the sampling of runs, harder and harder")
    _add_common(attack, samples=500)
    attack.add_argument("--kind", choices=KINDS, default="fgsm")
    attack.add_argument(
        "--radius", type=_numbers, default=[0.25, 0.5, 1, 2], help="comma-separated, in noise units"
    )
    attack.add_argument(
        "--at",
        type=_numbers,
        default=[800, 600, 400, 200],
        help="times of the noise process, 0 end",
    )
    attack.add_argument("--depth", type=positive, default=1, help="steps the gradient goes through")
    attack.add_argument(
        "--draws", type=positive, default=1, help="of the ancestral noise it averages over"
    )
    attack.add_argument("--sampler", choices=("ddim", "ddpm"), help="default: each run's")
    attack.add_argument("--reference", help="clean pictures (default: each run's)")

    memorization = command("memorization", _memorization, "look for copies of training pictures")
    _add_common(memorization, samples=1000)
    memorization.add_argument(
        "--originals",
        action="store_true",
        help="compare with the training pictures before the run contaminated them",
    )


def _add_common(parser: argparse.ArgumentParser, samples: int) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="directories of finished pixel runs")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .json file; a .png comes with it"
    )
    parser.add_argument("--samples", type=positive, default=samples, help="drawn from each run")
    parser.add_argument("--features", help="comma-separated (default: the first run's)")
    parser.add_argument("--weights", type=Path, help="weights file of the inception features")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--offline", action="store_true")


def _attack(options: argparse.Namespace) -> int:
    from .evaluation.attack_curves import ITERATIONS, attack_curve, save_attack_figure
    from .evaluation.metrics import REFERENCE, FeatureCache
    from .evaluation.sampling import load_run
    from .evaluation.tables import number

    runs, extractors = _open(options)
    settings = {name: getattr(options, name) for name in ("at", "depth", "draws")}
    curves = {}
    for path, run in runs:
        if run.config.get("stop_at"):
            raise InputError(f"{path} stops its sampler early, which `attack` cannot do")
        network, scheduler = load_run(path, chosen_sampler(options, run.config))
        clean = pictures_of(run, options.offline, options.reference or run.config["reference"])
        curves[run.name] = attack_curve(
            network.to(options.device),
            scheduler,
            FeatureCache(clean.clean_tensor(REFERENCE)),
            extractors,
            options.radius,
            count=options.samples,
            steps=run.config["sampling_steps"],
            seed=options.seed,
            device=options.device,
            iterations=ITERATIONS[options.kind],
            **settings,
        )
    told = {"kind": options.kind, **settings, "samples": options.samples, "seed": options.seed}
    write_json(options.out, {**told, "sampler": options.sampler or "the run's", "runs": curves})
    times = ", ".join(f"{time:g}" for time in options.at)
    steps = "step" if options.depth == 1 else "steps"
    title = f"{options.kind} at times {times}, gradient through {options.depth} {steps}"
    save_attack_figure(curves, title, options.out.with_suffix(".png"))
    for name, rows in curves.items():
        print(name)
        for row in rows:
            distances = ", ".join(f"{k} {number(v)}" for k, v in row["frechet"].items())
            print(f"  radius {row['radius']:g}: {distances}")
    return 0


def chosen_sampler(options: argparse.Namespace, config: dict[str, Any]) -> str:
    """--sampler, or the run's. config: the run's."""
    if config["parameterization"] == "flow":
        refuse_options(options, ("sampler",), "is not for flow matching, which has one of its own")
    return options.sampler or config["sampler"]


def _memorization(options: argparse.Namespace) -> int:
    from .evaluation.memorization import memorization, own_similarity, save_similarity_figure
    from .evaluation.metrics import nearest_similarity
    from .evaluation.sampling import draw_samples, load_run

    runs, extractors = _open(options)
    found: dict[str, dict] = {}
    panels: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for path, run in runs:
        network, scheduler = load_run(path, run.config["sampler"])
        drawn = draw_samples(
            network.to(options.device),
            scheduler,
            options.samples,
            steps=run.config["sampling_steps"],
            seed=options.seed,
            device=options.device,
            stop_at=run.config.get("stop_at"),
        )
        training, unseen = _seen_and_unseen(run, options.originals, options.offline)
        for extractor in extractors:
            features, known = extractor(drawn), extractor(training)
            new = None if unseen is None else extractor(unseen)
            found.setdefault(run.name, {})[extractor.name] = memorization(features, known, new)
            similarities = own_similarity(known), nearest_similarity(features, known)
            panels.setdefault(extractor.name, {})[run.name] = similarities
    told = {name: getattr(options, name) for name in ("originals", "samples", "seed")}
    write_json(options.out, {**told, "runs": found})
    save_similarity_figure(panels, options.out.with_suffix(".png"))
    for name, spaces in found.items():
        for space, result in spaces.items():
            print(f"{name}: {result['near_duplicates']:.1%} near-duplicates ({space})")
    return 0


def _open(options: argparse.Namespace) -> tuple[list[tuple[Path, Run]], list[Extractor]]:
    from .evaluation.features import make_extractors
    from .evaluation.runs import read_runs

    if options.out.suffix != ".json":
        raise InputError(f"--out must be a .json file, got {options.out}; the figure gets .png")
    runs = read_runs(options.runs)
    for path, run in zip(options.runs, runs, strict=True):
        if run.latent:
            raise InputError(f"{path} is a run of finetune-latent; only pixel runs can be probed")
    features = options.features.split(",") if options.features else runs[0].config["features"]
    weights = options.weights or runs[0].config.get("weights")
    extractors = make_extractors(
        features, device=options.device, weights=weights, offline=options.offline
    )
    return list(zip(options.runs, runs, strict=True)), extractors


def pictures_of(
    run: Run, offline: bool, data: str | None = None, limit: int | None = None
) -> ContaminatedPictures:
    """The run's data as it contaminated them, or other `data` left as they are."""
    from .data import ContaminatedPictures, open_pictures, parse_contamination

    config = run.config
    pictures = open_pictures(
        data or config["data"],
        size=config["size"],
        channels=config["channels"],
        limit=limit,
        max_bad_fraction=1.0,  # what was refused is known since the run
        offline=offline,
    )
    corruptions = parse_contamination("none" if data else config["contamination"])
    return ContaminatedPictures(pictures, corruptions, config["seed"])


def audit_pixel_run(
    path: Path, run: Run, device: str, offline: bool
) -> tuple[Audit, ContaminatedPictures]:
    """The network of the run at `path` judges the pictures it was trained on.  =>  and these."""
    from .data import audit_pictures
    from .evaluation.sampling import load_judge

    pictures = pictures_of(run, offline, limit=run.config["limit"])
    look, process = load_judge(path, pictures, device)
    return audit_pictures(look, process, pictures, seed=run.config["seed"]), pictures


def _seen_and_unseen(run: Run, originals: bool, offline: bool) -> tuple[Tensor, Tensor | None]:
    """The training pictures (M, C, H, W) as the run saw them, or their originals; and up to M that
    its `limit` left out, contaminated alike or not at all; None where it left out none."""
    from .data.contaminated import spaced

    data, limit = run.config["data"] if originals else None, run.config["limit"]
    seen = pictures_of(run, offline, data, limit)
    if limit is None:
        return seen.sample_tensor(), None
    everything = pictures_of(run, offline, data)
    known = {seen.name(i) for i in range(len(seen))}
    rest = [i for i in range(len(everything)) if everything.name(i) not in known]
    chosen = [rest[i] for i in spaced(len(rest), len(seen))]
    return seen.sample_tensor(), everything.__getitems__(chosen)["sample"] if chosen else None


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"needs numbers >= 0, e.g. 0.5,1,2, got {text!r}")
    return numbers


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"needs a whole number >= 1, got {text!r}")
    return int(text)
