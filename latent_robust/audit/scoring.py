"""A trained model judges the samples it was trained on: which are dirty, and how noisy are they?

Noise a sample y to s = sigma / alpha, let the model denoise it, and compare:

    score = mean (y - x0_hat)^2                 averaged over elements and over draws of the noise

A model draws what most of its data have in common. What it cannot draw again (noise, above all)
remains in the score, whether or not the model was trained on that very sample. Two groups of scores
are told apart by Otsu's threshold on their logarithm; a score becomes a noise level by comparison
with the lowest scores, to which noise of known strength was added; for each channel apart, since an
encoder hands on more of an image's noise in some of its channels than in others. Where the scores
form one group, of scores that are much alike, and the levels do not add up to the noise that the
data are known to have, the samples that were compared with have what is missing: nothing is clean.
Where they form one group and the data are known to have no noise, nothing is noisy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latent_robust.core import NoiseProcess, derive_generator
from latent_robust.errors import InputError
from latent_robust.files import write_jsonl
from latent_robust.subset import evenly_spaced

from .bimodality import are_two_groups, otsu
from .spectrum import CLEAN, images_to_measure, measure_spectrum

# Noise levels, in units of the samples, at which the model is asked; the one that tells the samples
# apart best is taken.
NOISES = (0.1, 0.2, 0.4, 0.8)
# Values of a channel that a score looks at: small samples are asked about several times. (Four
# draws of 8x8 digits tell mixed levels apart nearly as well as sixteen do, one does it less well.)
VALUES = 256
BATCH = 64
LEAST = 1e-8  # a score that is 0 has no logarithm

TRIED = 512  # samples on which that level is chosen

# Without two groups, the share of the samples that counts as clean.
CLEANEST = 0.05
# Levels are measured where the model is asked at so many times the noise of the samples: there it
# knows nothing of their own.
ABOVE = 2.0
# The share of the known noise's variance that must be missing: a spectrum reads noise a little too
# high, and fine drawing as noise.
MISSING = 0.5
# Noise lifts all scores alike; where the cleanest twentieth stay below this share of the median,
# they do not have the others'. (0.77 where all digits have noise of 0.2 of the range; 0.65 with
# missing blocks, 0.54 with salt and pepper, 0.59 without dirt.)
ALIKE = 0.7
REFERENCES = 64  # clean samples to which known noise is added
GRID = 12  # strengths of that noise

Denoise = Callable[[Tensor, Tensor], Tensor]
DenoiseBatch = Callable[[Sequence[int]], tuple[Tensor, Denoise]]


class ImageSamples(Protocol):
    """Images as they are trained on, e.g. ContaminatedImages."""

    def __len__(self) -> int: ...

    def sample_tensor(self, limit: int | None = None) -> Tensor:
        """`limit` evenly spaced samples, (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class Audit:
    """scores: (N,); levels: (N, C), standard deviation of the noise in each channel of a sample, in
    its own units, 0 for what counts as clean; noise: the s at which the scores were taken;
    separation: Otsu's criterion in [0, 1]."""

    scores: Tensor
    levels: Tensor
    noise: float
    separation: float

    @property
    def two_groups(self) -> bool:
        return are_two_groups(self.separation, len(self.scores))

    def summary(self) -> str:
        levels = root_mean_square(self.levels)
        dirty = levels > 0
        found = f"{int(dirty.sum()):,} of {len(dirty):,} samples are noisy"
        if dirty.any():
            shares = torch.tensor([0.05, 0.5, 0.95])
            low, middle, high = levels[dirty].quantile(shares).tolist()
            found += f", their level is {middle:.3f} (from {low:.3f} to {high:.3f})"
        kind = "two groups" if self.two_groups else "one group"
        return f"{found}; scores at s = {self.noise} form {kind} (separation {self.separation:.2f})"

    def rows(self, name: Callable[[int], str]) -> Iterator[dict[str, Any]]:
        columns = zip(self.scores.tolist(), self.levels.tolist(), strict=True)
        for index, (score, levels) in enumerate(columns):
            rounded = [float(f"{level:.6g}") for level in levels]
            yield {
                "index": index,
                "name": name(index),
                "score": float(f"{score:.6g}"),
                "level": rounded if len(rounded) > 1 else rounded[0],
                "flagged": any(levels),
            }

    def write(self, path: str | Path, name: Callable[[int], str]) -> None:
        """JSON lines, whole or not at all, as `--levels` reads them. name: of a sample."""
        write_jsonl(self.rows(name), path)


def audit_facts(path: Path, dirty: Tensor | None) -> dict[str, Any]:
    """What an audit found, and how right it was, for metrics.json. path: as `Audit.write` wrote it;
    dirty: (N,), bool, the truth; None where nobody knows it."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    flagged = torch.tensor([row["flagged"] for row in rows])
    levels = root_mean_square(torch.tensor([row["level"] for row in rows]).view(len(rows), -1))
    facts = {
        "samples": len(rows),
        "flagged": int(flagged.sum()),
        "level": round(float(levels[flagged].median()), 4) if flagged.any() else 0.0,
    }
    if dirty is None:
        return facts
    facts["clean_but_flagged"] = int((~dirty & flagged).sum())
    facts["dirty_but_kept"] = int((dirty & ~flagged).sum())
    if dirty.any() and not dirty.all():
        from sklearn.metrics import roc_auc_score

        scores = [row["score"] for row in rows]
        facts["roc_auc"] = round(float(roc_auc_score(dirty.numpy(), scores)), 4)
    return facts


def root_mean_square(levels: Tensor) -> Tensor:
    """(N, C)  =>  (N,)."""
    return levels.square().mean(1).sqrt()


@torch.no_grad()
def audit_samples(
    denoise_batch: DenoiseBatch,
    process: NoiseProcess,
    buckets: Sequence[Sequence[int]],
    *,
    known: float | None = None,
    batch: int = BATCH,
    seed: int = 0,
) -> Audit:
    """denoise_batch(indices): samples (B, C, ...) and denoise(noisy, t) => prediction, conditions bound;
    buckets: indices 0 .. N - 1, those of a bucket may share a batch (one that is there twice counts
    once); known: root mean square over all samples of the white noise in them, if it is known, as
    `measure_spectrum` finds it; 0 if there is none; batch: samples that are asked about at a time.

    InputError if the model's answers are not finite.

    Costs a pass over the data and one over what is flagged (several each where a sample's channel
    has less than VALUES values), and some over TRIED and over REFERENCES samples.
    """
    once = [list(dict.fromkeys(bucket)) for bucket in buckets]
    count = sum(map(len, once))

    def energies(chosen: Tensor, noise: float, extra: float = 0.0) -> Tensor:
        """Of the chosen ones, in the order of their indices."""
        batches = _in_batches(once, chosen, batch)
        shown = tqdm(batches, f"auditing at noise {noise:.2g}", unit="batch", delay=2, leave=False)
        found = torch.cat([_energies(denoise_batch, process, b, noise, extra, seed) for b in shown])
        return found[torch.tensor([index for b in batches for index in b]).argsort()]

    tried = _marked(evenly_spaced(count, TRIED), count)
    asked = max(NOISES, key=lambda s: otsu(energies(tried, s).mean(1).log())[1])
    found = energies(torch.ones(count, dtype=torch.bool), asked)
    scores = found.mean(1)
    threshold, separation = otsu(scores.log())
    one_group = not are_two_groups(separation, count)
    clean = scores.log() <= threshold
    if one_group:
        clean = scores <= scores.quantile(CLEANEST)
    levels = torch.zeros(found.shape)
    if clean.all() or (one_group and known == 0):
        return Audit(scores, levels, asked, separation)
    dirty = ~clean
    cleans = clean.nonzero().flatten()
    references = _marked(cleans[evenly_spaced(len(cleans), REFERENCES)], count)

    total, _ = _calibrate(partial(energies, references, asked), found[dirty])
    typical = total.median().item()
    if typical > 0:
        above = ABOVE * typical
        total, channels = _calibrate(partial(energies, references, above), energies(dirty, above))
        # What a channel gets of an image's noise is the encoder's doing, the same in all samples.
        shares = channels.median(0).values
        shares = shares / root_mean_square(shares[None]).clamp_min(1e-6)
    else:
        shares = torch.ones(found.shape[1])
    levels[dirty] = total[:, None] * shares
    alike = scores.quantile(CLEANEST) > ALIKE * scores.median()
    if known is not None and one_group and alike:
        levels = _with_what_is_missing(levels, known, shares)
    return Audit(scores, levels, asked, separation)


def audit_images(
    denoise_batch: DenoiseBatch, process: NoiseProcess, images: ImageSamples, *, seed: int = 0
) -> Audit:
    """`audit_samples` of images, whose white noise can be measured."""
    _, channels, size, _ = images.sample_tensor(limit=1).shape
    few = images.sample_tensor(limit=images_to_measure(size, channels))
    noise = measure_spectrum(few).level
    known = noise if noise >= CLEAN else 0.0
    return audit_samples(denoise_batch, process, [range(len(images))], known=known, seed=seed)


def _energies(
    denoise_batch: DenoiseBatch,
    process: NoiseProcess,
    indices: Sequence[int],
    noise: float,
    extra: float,
    seed: int,
) -> Tensor:
    """=>  (B, C), mean (y - x0_hat)^2 of each channel; their mean is the score. extra: standard
    deviation of noise that is added to the samples themselves."""
    sample, denoise = denoise_batch(indices)
    t = process.time_of(noise).to(sample.device).expand(len(sample))
    alpha, sigma = process(t, sample)
    total = torch.zeros(sample.shape[:2], dtype=torch.float64)
    generator = derive_generator(seed, "audit", indices[0], device=sample.device)
    draws = ceil(VALUES / sample[0, 0].numel())
    for _ in range(draws):
        dirt, noisiness = torch.randn(2, *sample.shape, generator=generator, device=sample.device)
        seen = sample + extra * dirt
        noisy = alpha * seen + sigma * noisiness
        prediction = denoise(noisy, t)
        estimate = process.parameterization.to_sample(noisy, prediction.float(), alpha, sigma)
        total += (seen - estimate).square().flatten(2).cpu().double().mean(2)
    if not total.isfinite().all():
        raise InputError("the judge's answers are not finite: it has diverged, choose another")
    return (total / draws).clamp_min(LEAST)


def _calibrate(energies_with: Callable[[float], Tensor], found: Tensor) -> tuple[Tensor, Tensor]:
    """The noise that a clean sample would need to show as much of it as is `found`, (N, C): as a
    whole, (N,), and in each channel, (N, C).

    energies_with(extra): those of the clean references with so much noise, (R, C). Their median
    rises with the noise; between its values the squared level is interpolated.
    """
    known = [energies_with(0.0)]
    top = found.max(0).values
    step = (top - known[0].mean(0)).max().clamp_min(1e-8).sqrt().item() / GRID
    while (known[-1].median(0).values < top).any() and len(known) < 2 * GRID:
        known.append(energies_with(step * len(known)))
    known, squared = torch.stack(known), np.square(step * np.arange(len(known)))

    def level(values: Tensor, references: Tensor) -> Tensor:
        medians = references.median(1).values.cummax(0).values  # (G,)
        return torch.from_numpy(np.interp(values.numpy(), medians.numpy(), squared)).sqrt().float()

    channels = [level(*pair) for pair in zip(found.unbind(1), known.unbind(2), strict=True)]
    return level(found.mean(1), known.mean(2)), torch.stack(channels, 1)


def _with_what_is_missing(levels: Tensor, known: float, shares: Tensor) -> Tensor:
    """The references' own noise, if the levels above it fall far short of the known noise."""
    missing = known**2 - levels.square().mean().item()
    if missing <= MISSING * known**2:
        return levels
    return (levels.square() + missing * shares.square()).sqrt()


def _marked(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    marked = torch.zeros(count, dtype=torch.bool)
    marked[indices] = True
    return marked


def _in_batches(buckets: Sequence[Sequence[int]], chosen: Tensor, batch: int) -> list[list[int]]:
    """The chosen ones, no batch of more than one bucket."""
    kept = ([index for index in bucket if chosen[index]] for bucket in buckets)
    return [bucket[i : i + batch] for bucket in kept for i in range(0, len(bucket), batch)]
