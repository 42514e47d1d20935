"""An auditor that knows what clean samples look like finds noisy samples and their noise levels."""

import json

import pytest
import torch

from latent_robust.audit import Audit, audit_facts, audit_samples, read_levels
from latent_robust.audit.bimodality import MIN_SEPARATION, otsu
from latent_robust.audit.calibration import GRID, calibrate
from latent_robust.audit.scoring import CLEANEST_SHARE, NOISE_LEVELS
from latent_robust.core import NoiseProcess
from latent_robust.errors import InputError

FLOW = NoiseProcess.flow()
EPSILON = NoiseProcess.from_alphas_cumprod(torch.linspace(0.9999, 0.001, 1000), "epsilon")


def knows_zero(process):
    """The ideal denoiser of a dataset whose samples are all 0, so that every deviation is noise."""

    def denoise(noisy, t):
        alpha, sigma = process(t, noisy)
        return process.parameterization.target(torch.zeros_like(noisy), noisy / sigma, alpha, sigma)

    return denoise


def audit(samples, process=EPSILON, buckets=None, **noise):
    denoise, buckets = knows_zero(process), buckets or [range(len(samples))]
    return audit_samples(lambda indices: (samples[indices], denoise), process, buckets, **noise)


def noisy_samples(levels, side=16):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(levels), 1, side, side, generator=generator)
    return levels.view(-1, 1, 1, 1) * noise


@pytest.mark.parametrize("process", [FLOW, EPSILON])
def test_the_score_is_the_variance_that_the_auditor_cannot_explain(process):
    samples = noisy_samples(torch.tensor([0.0] * 5 + [0.3] * 20))
    # float32 rounding: x0_hat is a difference of terms as large as the noise.
    expected = samples.square().mean((1, 2, 3))
    assert torch.allclose(audit(samples, process).scores.float(), expected, atol=1e-6)


@pytest.mark.parametrize(("side", "draws"), [(4, 16), (8, 4), (10, 3), (16, 1), (20, 1)])
def test_a_score_averages_at_least_256_values_of_each_channel(side, draws):
    samples, inputs = torch.zeros(1, 3, side, side), []

    def denoise(noisy, t):
        inputs.append(noisy)
        return torch.zeros_like(noisy)

    audit_samples(lambda _: (samples, denoise), EPSILON, [[0]])
    # Each noise level is tried, and the best one is used for all samples.
    assert len(inputs) == draws * (len(NOISE_LEVELS) + 1)


def test_bimodal_scores_are_separated_and_the_noise_is_measured():
    reference = torch.tensor([0.0] * 20 + [0.4] * 180)
    result = audit(noisy_samples(reference) + 0.01)
    assert result.bimodal
    assert torch.equal(result.levels[:, 0] > 0, reference > 0)
    # 256 values each: the relative standard error of one level is 1 / sqrt(512), 4.4 %. That of the
    # median over 180 is far less, and the references add about 1 %.
    assert result.levels[20:].median() == pytest.approx(0.4, rel=0.03)


def test_an_auditor_that_is_not_finite_at_one_noise_level_is_refused():
    """Also if only the calibration uses this noise level, and the scores do not."""
    samples = noisy_samples(torch.tensor([0.0] * 20 + [0.3] * 180))
    denoise = knows_zero(EPSILON)

    def breaks(noisy, t):
        alpha, sigma = EPSILON(t, noisy)
        broken = (sigma / alpha > 0.5) & (sigma / alpha < 0.7)
        return torch.where(broken, torch.nan, denoise(noisy, t))

    assert 0.5 < 2 * audit(samples).levels[20:].median() < 0.7
    with pytest.raises(InputError, match="not finite"):
        audit_samples(lambda indices: (samples[indices], breaks), EPSILON, [range(len(samples))])


def test_levels_that_differ_are_ordered_and_measured():
    reference = torch.linspace(0, 0.3, 200)
    result = audit(noisy_samples(reference))
    assert not result.bimodal
    assert (result.levels == 0).sum() == CLEANEST_SHARE * len(reference)
    noisy = result.levels[:, 0] > 0
    # The samples that count as clean have noise up to 0.015 themselves.
    assert torch.allclose(result.levels[noisy, 0], reference[noisy], rtol=0.2, atol=0.02)


def test_unimodal_scores_without_measured_noise_are_all_clean():
    """Unimodal scores always have a highest one."""
    unimodal = noisy_samples(torch.linspace(0.1, 0.3, 200))
    clean = audit(unimodal, noise_std=0.04, looks_clean=True)
    assert not clean.levels.any()
    assert clean.told
    assert audit(unimodal).levels.any()


def test_bimodal_scores_count_if_the_images_show_as_much_noise():
    """Few noisy images are little noise in all; more noise than there is, is something else."""
    few = noisy_samples(torch.tensor([0.0] * 190 + [0.4] * 10))
    little = 0.4 * (10 / 200) ** 0.5
    assert (audit(few, noise_std=little, looks_clean=True).levels > 0).sum() == 10
    untold = audit(few, noise_std=little / 2, looks_clean=True)
    assert not untold.told
    assert not untold.levels.any()
    assert "cannot tell" in untold.summary()
    assert "--trusted" in untold.summary()


@pytest.mark.parametrize("shown", [0.0, 0.1])
def test_one_group_with_more_noise_than_the_images_show_cannot_be_told(shown):
    """As where an auditor that does not know the images takes the sharp ones for noisy."""
    spread = noisy_samples(torch.linspace(0.1, 0.4, 200))
    assert not audit(spread, noise_std=shown).told


def test_if_no_sample_is_clean_the_measured_noise_shows_it():
    samples = noisy_samples(torch.full((200,), 0.4))
    assert (audit(samples).levels == 0).any()
    result = audit(samples, noise_std=0.4)
    assert result.levels.square().mean().sqrt() == pytest.approx(0.4, rel=1e-3)
    # 256 values each, 4.4 %: the levels of the lowest of 200 are underestimated.
    assert result.levels.min() > 0.3
    mixed = noisy_samples(torch.linspace(0, 0.3, 200))
    a_tenth_too_high = 1.1 * 0.3 / 3**0.5
    assert torch.equal(audit(mixed, noise_std=a_tenth_too_high).levels, audit(mixed).levels)
    # Salt and pepper reads as more white noise than it is, but its scores are not similar.
    assert torch.equal(audit(mixed, noise_std=0.6).levels, audit(mixed).levels)


def test_channels_have_levels_of_their_own(tmp_path):
    reference = torch.tensor([0.1, 0.4, 1.0])
    noise = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = 0.01 + reference.view(3, 1, 1) * noise
    samples[:10] = 0.01
    result = audit(samples)
    assert (result.levels[:10] == 0).all()
    # The tolerance of the test for bimodal scores.
    assert torch.allclose(result.levels[10:].median(0).values, reference, rtol=0.03)
    result.write(tmp_path / "audit.jsonl", str)
    assert torch.allclose(
        read_levels(tmp_path / "audit.jsonl", 100, 3).level, result.levels, rtol=1e-5
    )


def test_scores_are_in_the_order_of_the_samples_for_any_buckets():
    samples = noisy_samples(torch.linspace(0, 0.3, 150))
    buckets = [list(range(1, 150, 2)), [0, *range(0, 150, 2)]]
    one, other = audit(samples), audit(samples, buckets=buckets)
    assert torch.allclose(one.scores, other.scores, atol=1e-6)


def test_no_batch_is_larger_than_allowed():
    samples, sizes = noisy_samples(torch.linspace(0, 0.3, 50)), []

    def denoise_batch(indices):
        sizes.append(len(indices))
        return samples[indices], lambda noisy, t: noisy

    audit_samples(denoise_batch, FLOW, [range(50)], batch=8)
    assert max(sizes) == 8


@pytest.mark.parametrize("count", [1, 5])
def test_equal_samples_are_all_clean(count):
    assert not audit(torch.zeros(count, 1, 4, 4)).levels.any()


def test_an_auditor_that_diverged_is_refused():
    samples = noisy_samples(torch.ones(3))
    with pytest.raises(InputError, match="diverged"):
        audit_samples(lambda i: (samples[i], lambda noisy, t: noisy * torch.nan), FLOW, [[0, 1, 2]])


def test_otsu_of_two_values_lies_between_them_and_explains_everything():
    threshold, separation = otsu(torch.tensor([1.0] * 30 + [3.0] * 10))
    assert threshold == pytest.approx(2)
    assert separation == pytest.approx(1)


@pytest.mark.parametrize("count", [6, 10, 30])
def test_a_few_normal_scores_are_not_bimodal_by_chance(count):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(300, count, generator=generator)
    bimodal = [Audit(s, s[:, None], 0.1, otsu(s)[1]).bimodal for s in drawn]
    # At most 2 % are expected. With 300 cases, 4 % is 2.5 standard errors above that.
    assert sum(bimodal) / 300 <= 0.04


def test_evenly_spread_values_are_not_bimodal():
    threshold, separation = otsu(torch.linspace(-1, 1, 1000))
    assert threshold == pytest.approx(0, abs=2e-3)
    assert separation == pytest.approx(0.75, abs=1e-4)  # 1 - (1/12 of the halves) / (1/3)
    assert separation < MIN_SEPARATION


def test_what_is_written_is_read_as_levels(tmp_path):
    result = audit(noisy_samples(torch.tensor([0.0] * 5 + [0.2] * 5)))
    result.write(tmp_path / "audit.jsonl", "image {}".format)
    rows = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"image {i}" for i in range(10)]
    assert [row["flagged"] for row in rows] == [False] * 5 + [True] * 5
    levels = read_levels(tmp_path / "audit.jsonl", 10, 1).level
    assert torch.allclose(levels, result.levels[:, 0], rtol=1e-5)


def test_facts_count_what_the_audit_got_wrong(tmp_path):
    result = audit(noisy_samples(torch.tensor([0.0] * 5 + [0.2] * 5)))
    result.write(tmp_path / "audit.jsonl", str)
    facts = audit_facts(tmp_path / "audit.jsonl", torch.tensor([True] + [False] * 4 + [True] * 5))
    assert facts["flagged"] == 5
    assert facts["dirty_but_kept"] == 1
    assert facts["clean_but_flagged"] == 0
    unknown = audit_facts(tmp_path / "audit.jsonl", None)
    assert unknown == {key: facts[key] for key in ("samples", "flagged", "level")}
    # Of 6 x 4 pairs of a dirty and a clean one, the mistaken sample ties with all 4 clean ones.
    assert facts["roc_auc"] == pytest.approx((5 * 4 + 0.5 * 4) / 24, abs=1e-4)


def rises_with(extra):
    """Errors of three clean samples of one channel, which added noise raises by its variance."""
    return torch.tensor([[0.9], [1.0], [1.1]]) + extra**2


def test_a_level_is_the_noise_that_gives_a_clean_sample_the_same_error():
    asked = []

    def reference(extra):
        asked.append(extra)
        return rises_with(extra)

    levels, by_channel = calibrate(reference, rises_with(0.5))
    truth = (0.25 + torch.tensor([-0.1, 0, 0.1])).sqrt()
    assert torch.allclose(levels, truth, atol=5e-3)  # the grid's own error
    assert torch.allclose(by_channel[:, 0], levels)
    assert len(asked) == GRID + 1  # each is a pass through the network: no more than it needs


def test_errors_that_added_noise_does_not_reach_end_the_search():
    asked = []

    def reference(extra):
        asked.append(extra)
        return rises_with(0.0)

    calibrate(reference, rises_with(0.5))
    assert len(asked) == 2 * GRID


def test_the_summary_says_how_noisy_the_noisy_ones_are():
    levels = torch.tensor([0.0, 0.0, 0.3])[:, None]
    audit = Audit(torch.tensor([1.0, 1.1, 2.0]), levels, noise=0.3, separation=0.5)
    assert audit.summary().startswith("1 of 3 samples are noisy (median level 0.300, 90 %")
    none = Audit(torch.tensor([1.0, 1.1, 2.0]), 0 * levels, noise=0.3, separation=0.5)
    assert none.summary().startswith("0 of 3 samples are noisy; scores")
