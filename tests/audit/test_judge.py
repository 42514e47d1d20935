"""Judges that know a few clean samples find the dirty ones, or say that they cannot."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from latent_robust.audit import Audit, audit_by_trusted, judge_network
from latent_robust.audit.judge import (
    FOLDS,
    FeatureJudge,
    area,
    decide,
    dirty_share,
    discriminant,
    folds,
    judge_samples,
    least_area,
)
from latent_robust.audit.judge_network import DetailJudge
from latent_robust.audit.trusted import LADDER
from latent_robust.core import derive_generator

COUNT, TRUSTED = 600, 40


def masks(share, seed=0):
    """=>  trusted and dirty, (COUNT,): the first are trusted, a share of the others dirty."""
    trusted = torch.arange(COUNT) < TRUSTED
    dirty = torch.rand(COUNT, generator=torch.Generator().manual_seed(seed)) < share
    return trusted, dirty & ~trusted


def shifted(dirty, by, width=30):
    """view: white features, and a shift of dirty samples that falls with the noise level."""

    def view(noise_level, number, indices):
        generator = derive_generator(f"{noise_level:g}", number)
        features = torch.randn(len(dirty), width, generator=generator)
        features[:, 0] += dirty * by / max(noise_level, 0.3)
        return features[indices]

    return view


def test_the_area_is_the_one_under_the_curve_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    higher, lower = torch.randint(0, 5, (30,), generator=generator), torch.randint(0, 5, (50,))
    truth = roc_auc_score([1] * 30 + [0] * 50, torch.cat([higher, lower]).numpy())
    assert area(higher.float(), lower.float()) == pytest.approx(truth)


@pytest.mark.parametrize("trusted", [20, 100])
def test_samples_of_one_kind_rarely_exceed_the_least_area(trusted):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, trusted + 300, generator=generator)
    above = [area(row[:trusted], row[trusted:]) > least_area(trusted, 300) for row in scores]
    assert 0 < sum(above) / len(above) < 0.01


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_the_share_of_dirt_and_the_threshold_follow_from_the_trusted(share):
    trusted, dirty = masks(share)
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(COUNT, generator=generator) - 6 * dirty.float()
    estimate = dirty_share(scores, trusted)
    assert estimate == pytest.approx(share, abs=0.15)
    found = decide(scores, trusted, estimate)
    assert (found == dirty)[~trusted].double().mean() > 0.98
    assert not found[trusted].any()


def test_where_nothing_is_dirty_nothing_is_found():
    scores = torch.arange(COUNT, dtype=torch.float32)
    trusted = torch.zeros(COUNT, dtype=torch.bool)
    trusted[::15] = True
    share = dirty_share(scores, trusted)
    assert share < 0.05
    assert decide(scores, trusted, share).double().mean() < 0.05


def test_a_sample_is_judged_by_a_fit_that_has_not_seen_it():
    """With more features than trusted samples, any fit to noise would separate what it has seen."""
    trusted, _ = masks(0)
    view = shifted(torch.zeros(COUNT), 0, width=200)
    views = torch.stack([view(0.1, 0, torch.arange(COUNT))])
    fold = folds(trusted, 0, FOLDS)
    assert [int(trusted[fold == f].sum()) for f in range(FOLDS)] == [TRUSTED // FOLDS] * FOLDS
    honest = discriminant(views, trusted.float(), fold)[0]
    assert abs(area(honest[trusted], honest[~trusted]) - 0.5) < 0.1


@pytest.mark.parametrize("share", [0.9, 0.4])
def test_dirty_features_are_found(share):
    trusted, dirty = masks(share)
    judge = FeatureJudge(shifted(dirty, 3.0), trusted)
    judgement = judge_samples({"features": judge}, trusted)
    assert judgement.judge == "features"
    assert (judgement.dirty == dirty)[~trusted].double().mean() > 0.97


def test_without_a_difference_it_cannot_tell_and_leaves_nothing_out():
    trusted, _ = masks(0.9)
    judge = FeatureJudge(shifted(torch.zeros(COUNT), 0), trusted)
    judgement = judge_samples({"features": judge}, trusted)
    assert judgement.judge is None
    assert not judgement.dirty.any()


def test_the_judge_that_sees_the_dirt_is_taken():
    trusted, dirty = masks(0.9)
    judges = {
        "blind": FeatureJudge(shifted(torch.zeros(COUNT), 0), trusted),
        "seeing": FeatureJudge(shifted(dirty, 2.0), trusted),
    }
    assert judge_samples(judges, trusted).judge == "seeing"


def test_details_at_random_places_are_seen(monkeypatch):
    monkeypatch.setattr(judge_network, "STEPS", 120)
    trusted, dirty = masks(0.8)
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(
        torch.randn(COUNT, 1, 10, 10, generator=generator), 3, 1
    )
    for index in dirty.nonzero().flatten().tolist():
        top, left = torch.randint(0, 6, (2,), generator=generator).tolist()
        images[index, :, top : top + 3, left : left + 3] = 1
    judge = DetailJudge(lambda indices: images[indices], trusted)
    scores = judge(trusted.float())
    assert area(scores[~trusted & ~dirty], scores[dirty]) > 0.9
    assert torch.equal(judge(trusted.float()), scores)


def noise_audit(flagged):
    levels = torch.where(flagged, 0.5, 0.0)[:, None]
    return Audit(torch.rand(COUNT), levels, noise=0.2, separation=0.9)


def judged(audit, trusted, view):
    images = torch.zeros(COUNT, 1, 4, 4)
    indices = trusted.nonzero().flatten().tolist()
    return audit_by_trusted(audit, indices, view, lambda rows: images[rows], 0)


def test_noisy_samples_keep_their_level_and_other_dirt_gets_a_floor(monkeypatch):
    monkeypatch.setattr(judge_network, "STEPS", 1)
    trusted, dirty = masks(0.6)
    noisy, blurred = dirty & (torch.arange(COUNT) % 3 == 0), dirty & (torch.arange(COUNT) % 3 > 0)
    audit = judged(noise_audit(noisy), trusted, shifted(blurred, 2.0))
    assert audit.by_trusted.noise_believed
    assert torch.equal(audit.levels[:, 0] > 0, noisy)
    assert (audit.usable_from[noisy] == 0.5).all()
    floor = audit.by_trusted.hidden_from
    assert floor in LADDER[3:]  # up to 0.3 the shift stays the same
    assert ((audit.usable_from == floor) == blurred)[~trusted].double().mean() > 0.95
    rows = list(audit.rows(str))
    assert sum(row["trusted"] for row in rows) == TRUSTED
    assert [row["likeness"] is None for row in rows] == noisy.tolist()


def test_an_auditor_that_takes_trusted_samples_for_noisy_ones_is_not_believed(monkeypatch):
    """As one that takes blurred images for the clean ones."""
    monkeypatch.setattr(judge_network, "STEPS", 1)
    trusted, dirty = masks(0.6)
    audit = judged(noise_audit(~dirty), trusted, shifted(dirty, 2.0))
    assert not audit.by_trusted.noise_believed
    assert not audit.levels.any()
    assert (audit.flagged == dirty)[~trusted].double().mean() > 0.95
    assert "its noise levels are not used" in audit.summary()


def test_dirt_that_no_noise_hides_is_never_used(monkeypatch):
    monkeypatch.setattr(judge_network, "STEPS", 1)
    trusted, dirty = masks(0.6)

    def view(noise_level, number, indices):
        return shifted(dirty, 2.0)(0.3, number, indices)

    audit = judged(noise_audit(torch.zeros(COUNT, dtype=torch.bool)), trusted, view)
    assert audit.by_trusted.hidden_from == torch.inf
    assert "used at no noise level" in audit.summary()


def test_a_kind_that_the_trusted_lack_is_reported(monkeypatch):
    """Half of the samples are of a kind of which no sample is trusted: they are left out, and said
    to be."""
    monkeypatch.setattr(judge_network, "STEPS", 1)
    trusted, _ = masks(0)
    other = (torch.arange(COUNT) % 2 == 0) & ~trusted

    def view(noise_level, number, indices):
        generator = derive_generator(f"{noise_level:g}", number)
        features = 0.3 * torch.randn(COUNT, 5, generator=generator)
        features[:, 0] += 4 * other.float()
        return features[indices]

    audit = judged(noise_audit(torch.zeros(COUNT, dtype=torch.bool)), trusted, view)
    assert "do the trusted ones lack their kind?" in audit.summary()
