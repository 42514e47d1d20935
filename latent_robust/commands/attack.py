"""`latent-robust attack`: attack the sampler of pixel runs with growing strength."""

from __future__ import annotations

import argparse

from latent_robust.data.sources.spec import IMAGE_FORMS, parse_spec
from latent_robust.errors import InputError
from latent_robust.files import write_json

from .options import add_common, add_sampler, numbers, positive
from .stress import USAGE as USAGE
from .stress import add_stress_options, check_stress_options, open_runs

SUMMARY = "measure how much attacks on the sampler degrade pixel runs"
EXAMPLES = """\
examples:
  latent-robust attack runs/plain runs/robust --out attack.json
  latent-robust attack runs/plain runs/robust --kind random --out control.json
"""
KINDS = ("random", "fgsm", "pgd")  # the keys of ITERATIONS in evaluation/attack_curves.py


def add_options(parser: argparse.ArgumentParser) -> None:
    need = add_stress_options(parser, samples=500)
    need.add_argument(
        "--reference",
        metavar="DATA",
        help="clean images to measure against (default: each run's)",
    )
    attack = parser.add_argument_group("the attack")
    attack.add_argument(
        "--kind",
        choices=KINDS,
        default="fgsm",
        metavar="NAME",
        help="fgsm (one gradient step), pgd (ten) or random, the control (default: fgsm)",
    )
    attack.add_argument(
        "--radius",
        type=numbers,
        default=[0.25, 0.5, 1, 2],
        metavar="X,...",
        help="largest change of a pixel, in standard deviations of the noise at the attacked step; "
        "one measurement each (default: 0.25,0.5,1,2)",
    )
    attack.add_argument(
        "--at",
        type=numbers,
        default=[800, 600, 400, 200],
        metavar="T,...",
        help="times of the noise process to attack; sampling ends at 0 (default: 800,600,400,200)",
    )
    attack.add_argument(
        "--depth",
        type=positive,
        default=1,
        metavar="N",
        help="denoising steps that the gradient goes through; more than 1 is an adaptive attack "
        "(default: 1)",
    )
    attack.add_argument(
        "--draws",
        type=positive,
        default=1,
        metavar="N",
        help="samples of the ancestral noise that the gradient averages over (default: 1)",
    )
    add_sampler(attack)
    add_common(parser)


def check(options: argparse.Namespace) -> None:
    check_stress_options(options)
    if options.reference is not None:
        parse_spec(options.reference, IMAGE_FORMS)


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
            raise InputError(
                f"{path} stops its sampler at noise level {config['stop_at']:g}; `attack` only "
                "works with runs that sample to the end"
            )
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
            print(f"  radius {row['radius']:g}: Fréchet distance to clean images {distances}")
    return 0
