"""Every case of the report's first sentence, on runs that exist in memory only."""

import pytest

from latent_robust.evaluation.features import headline_space
from latent_robust.evaluation.methods import group_by_method
from latent_robust.evaluation.runs import Run
from latent_robust.evaluation.verdict import verdict

DATA = {"data": "digits", "contamination": "gaussian:fraction=0.9,sigma=0.2", "steps": 100}


def test_less_noise_than_clean_images_have_is_called_smoother():
    """The estimate takes sharp edges for noise, so less is not always better."""
    outcome = verdict(
        [make_run("ddpm", 2.0, noise=0.38), make_run("robust-random", 0.7, noise=0.2)]
    )
    assert "0.20 against 0.38 (clean images 0.24; less is smoother than they are)" in str(outcome)


def test_distances_in_raw_pixels_are_named_as_well():
    """They are what the tables of README show."""
    spaces = {"pixels": 0.5, "digits": 0.7}
    outcome = verdict(
        [make_run("ddpm", {"pixels": 1.8, "digits": 2.0}), make_run("robust-random", spaces)]
    )
    assert "In raw pixels: 0.500 against 1.80." in outcome.evidence


def make_run(
    objective: str,
    distances: dict[str, float] | float | None,
    *,
    noise: float = 0.26,
    seconds: float | None = None,
    training: dict[str, float] | float | None = None,
    compared_with: str = "clean",
    samples: int = 1797,
    facts: dict | None = None,
    name: str = "",
    **config,
) -> Run:
    """distances, training: Fréchet distances of the run and its training data by feature space, or
    that in `digits`; None for what was not measured."""
    metrics = {"seconds": seconds, "compared_with": compared_with, **(facts or {})}
    if distances is not None:
        metrics["metrics"] = result(distances, noise, samples)
    if training is not None:
        metrics["floors"] = {"training set": result(training, 0.48, 1797)}
    config = {"objective": objective, "seed": 0, **DATA, **config}
    if "robust" in objective:
        config.setdefault("weight", 3.0)
    return Run(name or objective, config, {k: v for k, v in metrics.items() if v is not None})


def result(distances: dict[str, float] | float, noise: float, samples: int) -> dict:
    distances = distances if isinstance(distances, dict) else {"digits": distances}
    return {
        **{space: {"frechet": value} for space, value in distances.items()},
        "residual_noise": noise,
        "residual_noise_reference": 0.24,
        "samples": samples,
        "reference": 1797,
    }


def test_a_run_is_compared_with_plain_training_in_one_number():
    runs = [
        make_run("ddpm", 2.0, noise=0.38, seconds=100, training=1.5),
        make_run("robust-random", 0.7, noise=0.26, seconds=120, training=1.5),
    ]
    for order in (runs, runs[::-1]):
        outcome = verdict(order)
        assert outcome.sentence == (
            "robust-random is 65 % nearer to clean images than ddpm (plain training); "
            "residual noise 0.26 against 0.38 (clean images 0.24); 1.2 times the wall time"
        )
        assert outcome.evidence == (
            "Fréchet distance (digit network) to clean images: 0.700 against 2.00 for ddpm; 1,797 "
            "generated images, 1,797 clean ones, one seed. Training data: 1.50."
        )


@pytest.mark.parametrize(
    "distance, headline",
    [
        (1.3, "robust-random is 30 % farther from clean images than ddpm (plain training)"),
        (3.1, "robust-random is 3.1 times as far from clean images as ddpm (plain training)"),
        (
            0.96,
            "no difference: robust-random is 4 % nearer to clean images than ddpm (plain "
            "training), which is less than 10 % and may be chance",
        ),
        (
            1.06,
            "no difference: robust-random is 6 % farther from clean images than ddpm (plain "
            "training), which is less than 10 % and may be chance",
        ),
        (0.89, "robust-random is 11 % nearer to clean images than ddpm (plain training)"),
    ],
)
def test_farther_and_no_difference_are_said_as_plainly(distance, headline):
    outcome = verdict([make_run("ddpm", 1.0), make_run("robust-random", distance)])
    assert outcome.headline == headline
    uncertain = "so small a difference may be chance" in outcome.evidence
    assert uncertain == (distance == 0.89)


def test_the_time_of_short_runs_is_not_compared():
    for seconds, said in ((59, False), (60, True)):
        runs = [make_run(name, 1.0, seconds=seconds) for name in ("ddpm", "robust-random")]
        assert ("wall time" in verdict(runs).sentence) == said


def seeds(objective: str, *distances: float, **more) -> list[Run]:
    return [
        make_run(objective, distance, name=f"{objective}-{seed}", seed=seed, **more)
        for seed, distance in enumerate(distances)
    ]


def test_seeds_of_a_method_are_averaged():
    runs = [*seeds("ddpm", 1.0, 1.2, 0.8), *seeds("robust-random", 0.5, 0.6, 0.4)]
    outcome = verdict(runs)
    assert outcome.headline == (
        "robust-random is 50 % nearer to clean images than ddpm (plain training)"
    )
    assert "mean of 3 seeds" in outcome.evidence


def test_seeds_that_overlap_show_no_difference():
    runs = [*seeds("ddpm", 1.0, 1.4), *seeds("robust-random", 0.6, 1.1)]
    assert verdict(runs).headline == (
        "no difference: the seeds of robust-random and ddpm (plain training) overlap"
    )


def test_seeds_may_find_different_weights_but_a_sweep_is_not_one_method():
    outcome = group_by_method(
        [*seeds("ddpm", 1, 2), *seeds("robust-random", 1, weight=2.0), *seeds("robust-random", 1)]
    )
    assert [(m.name, len(m.runs)) for m in outcome] == [
        ("ddpm", 2),
        ("robust-random-0", 1),
        ("robust-random-0", 1),
    ]
    runs = [make_run("robust-random", 1, seed=seed, weight=3.0 + seed) for seed in (0, 1)]
    assert [len(method.runs) for method in group_by_method(runs)] == [2]


def test_feature_spaces_that_contradict_each_other_are_both_named():
    runs = [
        make_run("ddpm", {"pixels": 1.0, "digits": 1.0}),
        make_run("robust-random", {"pixels": 1.3, "digits": 0.75}),
    ]
    assert verdict(runs).headline == (
        "mixed: robust-random is 25 % nearer to clean images than ddpm (plain training) by digit "
        "network features, but 30 % farther by raw pixels"
    )
    # What counts as no difference contradicts nothing.
    runs[1] = make_run("robust-random", {"pixels": 1.05, "digits": 0.75})
    assert "mixed" not in verdict(runs).headline


def test_of_several_methods_the_nearest_is_named():
    runs = [make_run("ddpm", 2.0), make_run("robust-adversarial", 1.0), make_run("audited", 0.5)]
    assert verdict(runs).headline == (
        "audited is nearest to clean images of 3 methods, 75 % nearer than ddpm (plain training)"
    )
    runs[1] = make_run("robust-adversarial", 0.52)
    assert verdict(runs).headline == (
        "robust-adversarial and audited are nearest to clean images of 3 methods, 75 % nearer than "
        "ddpm (plain training)"
    )
    runs = [make_run("ddpm", 1.0), make_run("robust-adversarial", 1.3), make_run("audited", 2.5)]
    assert verdict(runs).headline == (
        "ddpm (plain training) is nearest to clean images; robust-adversarial is 30 % farther from "
        "clean images than that"
    )


@pytest.mark.parametrize(
    "distance, training, headline",
    [
        (0.7, 1.0, "robust-random is 30 % nearer to clean images than its training data"),
        (1.5, 1.0, "robust-random is 50 % farther from clean images than its training data"),
        (5.4, 1.0, "robust-random is 5.4 times as far from clean images as its training data"),
        (
            1.0,
            1.0,
            "no difference: robust-random is as near to clean images as its training data",
        ),
        (0.0, 0.0, None),  # equal sets of images: no error
    ],
)
def test_a_single_run_is_compared_with_its_training_data(distance, training, headline):
    outcome = verdict([make_run("robust-random", distance, training=training)])
    if headline is not None:
        assert outcome.headline == headline
    assert outcome.details == ("residual noise 0.26 against 0.48 (clean images 0.24)",)


def test_more_images_of_the_training_data_are_mentioned_where_they_matter():
    runs = [make_run("robust-random", 2.0, training=1.0, samples=200)]
    assert "measured with 1,797 images, which lowers" in verdict(runs).evidence
    runs = [make_run("robust-random", 0.5, training=1.0, samples=200)]
    assert "which lowers" not in verdict(runs).evidence


@pytest.mark.parametrize(
    "clean, headline",
    [
        (True, "regularizer off: the data look clean, so this is plain training"),
        (
            False,
            "regularizer off (weight 0), though the data look noisy: this is plain training",
        ),
        (None, "regularizer off (weight 0): this is plain training"),
    ],
)
def test_a_regularizer_that_is_off_is_said_first(clean, headline):
    off = {"weight": 0.0, "facts": {} if clean is None else {"data_look_clean": clean}}
    alone = make_run("robust-random", 0.7, compared_with="training", **off)
    assert verdict([alone]).sentence == headline
    measured = make_run("robust-random", 0.7, training=1.0, **off)
    assert verdict([measured]).sentence.startswith(
        f"{headline}; it is 30 % nearer to clean images than its training data"
    )
    assert verdict([make_run("ddpm", 0.7), measured]).headline == headline


def test_without_clean_images_no_claim_is_made():
    plain = make_run("ddpm", 1.0, noise=0.38, seconds=100, compared_with="training")
    robust = make_run("robust-random", 0.2, seconds=102, compared_with="training")
    headline = "nothing clean to measure against: look at the images"
    assert verdict([robust]).sentence == f"{headline}; residual noise 0.26 (training images 0.24)"
    assert verdict([plain, robust]).sentence == (
        f"{headline}; residual noise 0.26 for robust-random against 0.38 for ddpm (training images "
        "0.24); the same wall time"
    )


def test_without_feature_spaces_no_claim_is_made():
    runs = [make_run("ddpm", {}), make_run("robust-random", {})]
    assert verdict(runs).headline == "no distance was measured: look at the images"
    assert verdict(runs[1:]).headline == "no distance was measured: look at the images"


def test_runs_that_cannot_be_compared_are_not():
    plain = make_run("ddpm", 1.0)
    for other, reason in (
        (make_run("robust-random", 0.5, data="letters"), "the runs differ in data"),
        (
            make_run("robust-random", 0.5, size=16, limit=9),
            "the runs differ in limit and size",
        ),
        (
            make_run("robust-random", 0.5, samples=200),
            "distances depend on the number of images, and the runs have 200 and 1,797",
        ),
        (
            make_run("robust-random", 0.5, compared_with="training"),
            "some runs were measured against clean images, others against their training images",
        ),
    ):
        assert verdict([plain, other]).sentence == f"no comparison: {reason}"


def test_divergence_comes_before_everything_else():
    broken = make_run("robust-random", None, facts={"diverged": True, "steps": 100})
    sentence = (
        "diverged: robust-random generates non-finite images; train again with a lower learning "
        "rate"
    )
    assert verdict([broken]).sentence == sentence
    assert verdict([make_run("ddpm", 1.0), broken]).sentence == sentence
    assert verdict([make_run("robust-random", float("nan"))]).sentence == sentence


def test_what_is_missing_is_said():
    begun = Run("robust-random", {"objective": "robust-random", **DATA}, log=[{"step": 40}])
    missing = "robust-random is not finished (step 40 of 100)"
    assert verdict([begun]).sentence == f"no verdict yet; {missing}"
    assert verdict([make_run("ddpm", 1.0, training=2.0), begun]).sentence == (
        "ddpm (plain training) is 50 % nearer to clean images than its training data; residual "
        f"noise 0.26 against 0.48 (clean images 0.24); {missing}"
    )
    unmeasured = make_run("robust-random", None, facts={"steps": 100})
    assert verdict([unmeasured]).sentence == (
        "no verdict yet; robust-random was not measured, since no images were generated "
        "(--samples 0)"
    )


def test_few_images_give_a_hint():
    runs = [make_run("ddpm", 1.0, samples=16), make_run("robust-random", 0.5, samples=16)]
    assert verdict(runs).sentence.endswith("; only 16 images were measured, so this is a hint")


def test_captions_and_clip_are_part_of_the_sentence():
    runs = [
        make_run(name, 1.0, facts={"match": {"both": both}, "clip": {"clip_score": score}})
        for name, both, score in (("ddpm", 0.49, 25.04), ("audited", 0.57, 28.0))
    ]
    assert verdict(runs).details[1:] == (
        "captions right 57 % against 49 %",
        "CLIP score 28.00 against 25.04",
    )


def test_the_headline_space_sees_noise_and_content():
    assert headline_space(["pixels", "digits"]) == "digits"
    assert headline_space(["pixels", "open_clip x", "inception", "digits"]) == "inception"
    assert headline_space(["DINOv2", "open_clip x", "pixels"]) == "pixels"
    assert headline_space(["DINOv2", "open_clip x"]) == "DINOv2"
    assert headline_space([]) is None
