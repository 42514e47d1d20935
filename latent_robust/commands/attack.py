"""`latent-robust attack`: attack the sampling of pixel runs, harder and harder."""

from __future__ import annotations

import argparse

from latent_robust.errors import InputError
from latent_robust.files import write_json

from .options import numbers, positive
from .stress import add_stress_options, check_stress_options, open_runs

KINDS = ("random", "fgsm", "pgd")  # the keys of ITERATIONS in evaluation/attack_curves.py


def add_options(parser: argparse.ArgumentParser) -> None:
    add_stress_options(parser, samples=500)
    parser.add_argument(
        "--kind", choices=KINDS, default="fgsm", help="default: fgsm; random is the control"
    )
    parser.add_argument(
        "--radius",
        type=numbers,
        default=[0.25, 0.5, 1, 2],
        metavar="X,...",
        help="how far the noise is moved, in noise units (default: 0.25,0.5,1,2)",
    )
    parser.add_argument(
        "--at",
        type=numbers,
        default=[800, 600, 400, 200],
        metavar="T,...",
        help="times that are attacked, 0 being the end (default: 800,600,400,200)",
    )
    parser.add_argument(
        "--depth",
        type=positive,
        default=1,
        metavar="N",
        help="sampling steps that the gradient goes through (default: 1)",
    )
    parser.add_argument(
        "--draws",
        type=positive,
        default=1,
        metavar="N",
        help="draws of the ancestral noise that it averages over (default: 1)",
    )
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), help="default: each run's")
    parser.add_argument("--reference", metavar="DATA", help="clean images (default: each run's)")


def check(options: argparse.Namespace) -> None:
    check_stress_options(options)


def run(options: argparse.Namespace) -> int:
    from latent_robust.evaluation.attack_curves import ITERATIONS, attack_curve, save_attack_figure
    from latent_robust.evaluation.metrics import REFERENCE, FeatureCache
    from latent_robust.evaluation.tables import number
    from pixel.finished import choose_sampler, load_run, original_images

    runs, extractors = open_runs(options)
    settings = {name: getattr(options, name) for name in ("at", "depth", "draws")}
    curves = {}
    for path, attacked in runs:
        config = attacked.config
        if config.get("stop_at"):
            raise InputError(f"{path} stops its sampler early, which `attack` cannot do")
        network, scheduler = load_run(path, choose_sampler(options.sampler, config))
        reference = options.reference or config["reference"]
        clean = original_images(config, offline=options.offline, data=reference)
        curves[attacked.name] = attack_curve(
            network.to(options.device),
            scheduler,
            FeatureCache(clean.clean_tensor(REFERENCE)),
            extractors,
            options.radius,
            count=options.samples,
            steps=config["sampling_steps"],
            seed=options.seed,
            device=options.device,
            iterations=ITERATIONS[options.kind],
            **settings,
        )
    facts = {"kind": options.kind, **settings, "samples": options.samples, "seed": options.seed}
    write_json(options.out, {**facts, "sampler": options.sampler or "the run's", "runs": curves})
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
