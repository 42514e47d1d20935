import pytest
import torch
from torch import nn

from latent_robust.core import NoiseProcess
from latent_robust.latent.validation_loss import split_held_out, time_bins, validation_losses

DDPM = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
PROCESSES = {
    **{
        name: NoiseProcess.from_alphas_cumprod(DDPM, name)
        for name in ("epsilon", "v_prediction", "sample")
    },
    "flow": NoiseProcess.flow(),
}


@pytest.fixture(params=PROCESSES)
def process(request) -> NoiseProcess:
    return PROCESSES[request.param]


class Pairs:
    """Two buckets of latents, as LatentCache gives them; the second counts twice in an epoch."""

    def __init__(self, count: int = 7):
        shapes = [(4, 4, 6) if i % 3 else (4, 5, 5) for i in range(count)]
        self.means = [
            torch.randn(shape, generator=torch.Generator().manual_seed(i))
            for i, shape in enumerate(shapes)
        ]
        self.asked: list[list[int]] = []

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        mean = torch.stack([self.means[i] for i in indices])  # fails for two sizes
        return {"index": torch.tensor(indices), "mean": mean, "std": torch.full_like(mean, 9.0)}

    def buckets(self):
        square = [i for i in range(len(self.means)) if i % 3 == 0]
        return [square, [i for i in range(len(self.means)) if i % 3 for _ in range(2)]]


class Scaled(nn.Module):
    """predicts factor * noisy, with dropout in training"""

    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.dropout = nn.Parameter(torch.tensor(factor)), nn.Dropout(0.5)

    def forward(self, noisy):
        return self.dropout(self.factor * noisy)


def losses(process, network=None, dataset=None, indices=(0, 1, 2, 5, 6), **options):
    network = network or Scaled(0.3)
    return validation_losses(
        lambda batch: lambda noisy, t, rows: network(noisy),
        process, dataset or Pairs(), indices, network=network, **({"seed": 3} | options),
    )  # fmt: skip


def test_the_ideal_denoiser_of_one_image_has_no_loss(process):
    pairs = Pairs(1)

    def ideal(batch):
        def denoise(noisy, t, rows):
            alpha, sigma = process(t, noisy)
            sample = batch["mean"][rows]
            # What is not the sample is noise; at the first steps that is a small difference of
            # large numbers, hence double.
            noise = (noisy.double() - alpha.double() * sample) / sigma
            return process.parameterization.target(sample, noise, alpha, sigma)

        return denoise

    found = validation_losses(
        ideal, process, pairs, [0], network=Scaled(0.0), seed=0, times_per_bin=20
    )
    assert len(found) == 5
    # noisy is rounded to float32, 6e-8, and sigma is at least 1e-3: squared, below 1e-8
    assert max(found.values()) < 1e-8


@pytest.mark.parametrize(("name", "expected"), [("epsilon", 1.0), ("flow", 2.0)])
def test_an_answer_of_zero_costs_the_variance_of_the_target(name, expected):
    found = losses(PROCESSES[name], Scaled(0.0), Pairs(60), range(60), times_per_bin=4)
    # Targets are noise, or noise minus sample, of variance 1 each. 60 * 16 draws of 100 values for
    # the noise, 60 of 100 for the sample: standard deviations 0.005 and 0.02.
    assert found["validation/loss"] == pytest.approx(expected, abs=0.08)


def test_total_is_the_mean_of_the_bins(process):
    found = losses(process)
    total = found.pop("validation/loss")
    assert total == pytest.approx(sum(found.values()) / 4, rel=1e-12)


def test_bins_hold_equally_many_of_the_processs_times(process):
    names, times = time_bins(process.times, 4)
    assert names == ["t 0-250", "t 250-500", "t 500-750", "t 750-1000"]
    assert [len(chunk) for chunk in times] == [250] * 4
    assert torch.equal(torch.cat(times), process.times.sort().values)


def test_bins_of_a_shifted_flow_follow_its_times():
    sigma = torch.linspace(1, 0.001, 1000)
    shifted = NoiseProcess.flow(1000 * 3 * sigma / (1 + 2 * sigma))  # SD 3
    names, times = time_bins(shifted.times, 4)
    assert names == ["t 0-500", "t 500-750", "t 750-900", "t 900-1000"]
    assert all(len(chunk) == 250 for chunk in times)


def test_each_time_lies_in_its_bin(process):
    seen = []

    def factory(batch):
        return lambda noisy, t, rows: seen.append(t) or torch.zeros_like(noisy)

    options = {"network": Scaled(0.0), "seed": 0, "times_per_bin": 3, "batch_size": 9}
    validation_losses(factory, process, Pairs(), [1, 2, 4], **options)
    assert len(seen) == 12
    _, times = time_bins(process.times, 4)
    for number, t in enumerate(seen):
        assert set(t.tolist()) <= set(times[number // 3].tolist())


def test_a_loss_depends_on_seed_and_index_and_not_on_batches(process):
    found = losses(process)
    assert losses(process) == found
    assert losses(process, batch_size=1) == pytest.approx(found, rel=1e-6)  # sums in another order
    assert losses(process, indices=(6, 5, 2, 1, 0)) == found
    assert losses(process, seed=4) != found
    alone = [losses(process, indices=[i])["validation/loss"] for i in (0, 1, 2, 5, 6)]
    assert found["validation/loss"] == pytest.approx(sum(alone) / 5, rel=1e-6)


def test_batches_hold_each_index_once_and_one_size(process):
    pairs = Pairs()
    losses(process, dataset=pairs, batch_size=2)
    assert pairs.asked == [[0, 6], [1, 2], [5]]


def test_training_is_not_disturbed(process):
    network, random = Scaled(0.3).train(), torch.get_rng_state()
    found = losses(process, network)
    assert network.training
    assert network.factor.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert losses(process, network.eval()) == found
    assert not network.training


def test_nothing_to_validate_gives_nothing(process):
    assert losses(process, indices=[]) == {}


def test_held_out_pairs_are_a_fixed_share():
    train, held = split_held_out(1000, 0.05, seed=1)
    assert len(held) == 50
    assert sorted(train + held) == list(range(1000))
    assert (train, held) == (sorted(train), sorted(held))
    assert split_held_out(1000, 0.05, seed=1) == (train, held)
    assert split_held_out(1000, 0.05, seed=2) != (train, held)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(10, 0, 0), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (1, 0.5, 0)]
)
def test_something_is_held_out_and_something_trained_on(count, share, held):
    assert [len(part) for part in split_held_out(count, share, 0)] == [count - held, held]
