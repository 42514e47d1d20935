"""A model that knows what clean samples look like finds those that are not, and how noisy these
are."""

import json

import pytest
import torch

from latent_robust.audit import audit_facts, audit_samples, read_levels
from latent_robust.audit.bimodality import TWO_GROUPS, otsu
from latent_robust.audit.scoring import CLEANEST, NOISES, Audit
from latent_robust.core import NoiseProcess
from latent_robust.errors import InputError

FLOW = NoiseProcess.flow()
EPSILON = NoiseProcess.from_alphas_cumprod(torch.linspace(0.9999, 0.001, 1000), "epsilon")


def knows_zero(process):
    """=>  denoise of a model whose data are all 0, so that what is noisy is noise."""

    def denoise(noisy, t):
        alpha, sigma = process(t, noisy)
        return process.parameterization.target(torch.zeros_like(noisy), noisy / sigma, alpha, sigma)

    return denoise


def audit(samples, process=EPSILON, buckets=None, known=None):
    denoise, buckets = knows_zero(process), buckets or [range(len(samples))]
    return audit_samples(lambda indices: (samples[indices], denoise), process, buckets, known=known)


def noisy_samples(levels, side=16):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(levels), 1, side, side, generator=generator)
    return levels.view(-1, 1, 1, 1) * noise


@pytest.mark.parametrize("process", [FLOW, EPSILON])
def test_the_score_is_the_energy_of_what_the_model_cannot_draw(process):
    samples = noisy_samples(torch.tensor([0.0] * 5 + [0.3] * 20))
    # float32: x0_hat is a difference of terms of the size of the noise.
    expected = samples.square().mean((1, 2, 3))
    assert torch.allclose(audit(samples, process).scores.float(), expected, atol=1e-6)


@pytest.mark.parametrize(("side", "draws"), [(4, 16), (8, 4), (10, 3), (16, 1), (20, 1)])
def test_a_score_is_of_256_values_of_a_channel_at_least(side, draws):
    samples, seen = torch.zeros(1, 3, side, side), []

    def denoise(noisy, t):
        seen.append(noisy)
        return torch.zeros_like(noisy)

    audit_samples(lambda _: (samples, denoise), EPSILON, [[0]])
    assert len(seen) == draws * (len(NOISES) + 1)  # each noise is tried, the best one asked again


def test_two_groups_are_told_apart_and_the_noise_is_measured():
    truth = torch.tensor([0.0] * 20 + [0.4] * 180)
    found = audit(noisy_samples(truth) + 0.01)
    assert found.two_groups
    assert torch.equal(found.levels[:, 0] > 0, truth > 0)
    # 256 values each: a level's own standard error is 1 / sqrt(512) of it, 4.4 %; that of the
    # median over 180 is far less, and the references add about 1 %.
    assert found.levels[20:].median() == pytest.approx(0.4, rel=0.03)


def test_a_judge_that_is_not_finite_at_some_noise_is_refused():
    """Also where levels are measured, at more noise than the scores were taken at."""
    samples = noisy_samples(torch.tensor([0.0] * 20 + [0.3] * 180))
    denoise = knows_zero(EPSILON)

    def breaks(noisy, t):
        alpha, sigma = EPSILON(t, noisy)
        here = (sigma / alpha > 0.5) & (sigma / alpha < 0.7)
        return torch.where(here, torch.nan, denoise(noisy, t))

    assert 0.5 < 2 * audit(samples).levels[20:].median() < 0.7
    with pytest.raises(InputError, match="not finite"):
        audit_samples(lambda indices: (samples[indices], breaks), EPSILON, [range(len(samples))])


def test_levels_that_differ_are_ordered_and_measured():
    truth = torch.linspace(0, 0.3, 200)
    found = audit(noisy_samples(truth))
    assert not found.two_groups
    assert (found.levels == 0).sum() == CLEANEST * len(truth)
    known = found.levels[:, 0] > 0
    # The cleanest samples, which count as clean, have noise up to 0.015 themselves.
    assert torch.allclose(found.levels[known, 0], truth[known], rtol=0.2, atol=0.02)


def test_one_group_without_noise_is_clean():
    """Some samples are always the strangest; two groups speak for themselves."""
    strange = torch.linspace(0.1, 0.3, 200)
    assert not audit(noisy_samples(strange), known=0.0).levels.any()
    assert audit(noisy_samples(strange)).levels.any()
    assert audit(noisy_samples(torch.tensor([0.0] * 20 + [0.4] * 180)), known=0.0).levels.any()


def test_where_nothing_is_clean_the_known_noise_says_so():
    samples = noisy_samples(torch.full((200,), 0.4))
    assert (audit(samples).levels == 0).any()
    found = audit(samples, known=0.4)
    assert found.levels.square().mean().sqrt() == pytest.approx(0.4, rel=1e-3)
    # The cleanest of 200 seem to have less than they have: 256 values each, 4.4 %.
    assert found.levels.min() > 0.3
    mixed = noisy_samples(torch.linspace(0, 0.3, 200))
    a_tenth_too_high = 1.1 * 0.3 / 3**0.5
    assert torch.equal(audit(mixed, known=a_tenth_too_high).levels, audit(mixed).levels)
    # Salt and pepper reads as more white noise than it is, but its scores are not alike.
    assert torch.equal(audit(mixed, known=0.6).levels, audit(mixed).levels)


def test_channels_have_levels_of_their_own(tmp_path):
    truth = torch.tensor([0.1, 0.4, 1.0])
    noise = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = 0.01 + truth.view(3, 1, 1) * noise
    samples[:10] = 0.01
    found = audit(samples)
    assert (found.levels[:10] == 0).all()
    assert torch.allclose(found.levels[10:].median(0).values, truth, rtol=0.03)  # as above
    found.write(tmp_path / "audit.jsonl", str)
    assert torch.allclose(read_levels(tmp_path / "audit.jsonl", 100, 3), found.levels, rtol=1e-5)


def test_samples_keep_their_places_whatever_shares_a_batch():
    samples = noisy_samples(torch.linspace(0, 0.3, 150))
    buckets = [list(range(1, 150, 2)), [0, *range(0, 150, 2)]]
    one, other = audit(samples), audit(samples, buckets=buckets)
    assert torch.allclose(one.scores, other.scores, atol=1e-6)


def test_it_asks_about_no_more_at_a_time_than_it_may():
    samples, asked = noisy_samples(torch.linspace(0, 0.3, 50)), []

    def look(indices):
        asked.append(len(indices))
        return samples[indices], lambda noisy, t: noisy

    audit_samples(look, FLOW, [range(50)], batch=8)
    assert max(asked) == 8


@pytest.mark.parametrize("count", [1, 5])
def test_where_nothing_differs_nothing_is_noisy(count):
    assert not audit(torch.zeros(count, 1, 4, 4)).levels.any()


def test_a_judge_that_diverged_is_refused():
    samples = noisy_samples(torch.ones(3))
    with pytest.raises(InputError, match="diverged"):
        audit_samples(lambda i: (samples[i], lambda noisy, t: noisy * torch.nan), FLOW, [[0, 1, 2]])


def test_otsu_of_two_values_lies_between_them_and_explains_everything():
    threshold, separation = otsu(torch.tensor([1.0] * 30 + [3.0] * 10))
    assert threshold == pytest.approx(2)
    assert separation == pytest.approx(1)


@pytest.mark.parametrize("count", [6, 10, 30])
def test_a_few_alike_samples_are_not_two_groups_by_chance(count):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(300, count, generator=generator)
    found = [Audit(s, s[:, None], 0.1, otsu(s)[1]).two_groups for s in drawn]
    # 2 % at most; of 300 more than 4 % would be 2.5 standard errors above.
    assert sum(found) / 300 <= 0.04


def test_evenly_spread_values_are_not_two_groups():
    threshold, separation = otsu(torch.linspace(-1, 1, 1000))
    assert threshold == pytest.approx(0, abs=2e-3)
    assert separation == pytest.approx(0.75, abs=1e-4)  # 1 - (1/12 of the halves) / (1/3)
    assert separation < TWO_GROUPS


def test_what_is_written_is_read_as_levels(tmp_path):
    found = audit(noisy_samples(torch.tensor([0.0] * 5 + [0.2] * 5)))
    found.write(tmp_path / "audit.jsonl", "image {}".format)
    rows = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"image {i}" for i in range(10)]
    assert [row["flagged"] for row in rows] == [False] * 5 + [True] * 5
    levels = read_levels(tmp_path / "audit.jsonl", 10, 1)
    assert torch.allclose(levels, found.levels[:, 0], rtol=1e-5)


def test_facts_count_what_the_audit_got_wrong(tmp_path):
    found = audit(noisy_samples(torch.tensor([0.0] * 5 + [0.2] * 5)))
    found.write(tmp_path / "audit.jsonl", str)
    facts = audit_facts(tmp_path / "audit.jsonl", torch.tensor([True] + [False] * 4 + [True] * 5))
    assert facts["flagged"] == 5
    assert facts["dirty_but_kept"] == 1
    assert facts["clean_but_flagged"] == 0
    unknown = audit_facts(tmp_path / "audit.jsonl", None)
    assert unknown == {key: facts[key] for key in ("samples", "flagged", "level")}
    # Of 6 x 4 pairs of a dirty and a clean one, the mistaken sample ties with all 4 clean ones.
    assert facts["roc_auc"] == pytest.approx((5 * 4 + 0.5 * 4) / 24, abs=1e-4)
