"""START HERE. The paper's loss, in our notation:

    noisy      = alpha(t) * sample + sigma(t) * noise
    prediction = denoise(noisy, t)
    residual   = denoise(noisy + sigma * w, t) - prediction - shift(w)       # equivariance
    loss       = || prediction - target ||^2 + weighting * || residual ||^2
    weighting  = weight * gate(t) / || w ||^2

where || . ||^2 is the mean over a sample's elements ("Why Adversarially Train Diffusion Models?",
ICLR 2026). Move the noise by w, and the prediction must move with it; then the clean sample that it
implies stays where it is. How far: radius.py. In which direction: perturbation.py. How much it
counts: weighting.py, where this weighting is ours, `band`, and the paper's is `paper`. On which
samples, to save cost: rows.py. What else to train: peers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .dropout import shared_dropout
from .perturbation import ATTACKS, adversarial_perturbation, random_perturbation
from .process import NoiseProcess
from .radius import RadiusSchedule
from .rows import check_share, choose_rows, rows_in_turn
from .weighting import Weighting


class EquivariancePenalty:
    """weighting * || denoise(noisy + sigma w, t) - prediction - shift(w) ||^2, for any loop.

    attack: ATTACKS, how w is chosen; attack_steps: of the first two, more is PGD and its like;
    equivariant=False gives the *invariance* of adversarially trained classifiers,
    shift(w) = 0, which a denoiser must not have (the paper's negative control).
    """

    def __init__(
        self,
        process: NoiseProcess,
        weighting: Weighting | None = None,
        radius: RadiusSchedule | None = None,
        *,
        attack: str = "displacement",
        attack_steps: int = 1,
        equivariant: bool = True,
    ):
        if attack not in ATTACKS:
            raise ValueError(f"`attack` must be one of {', '.join(ATTACKS)}, got {attack!r}")
        if attack_steps < 1:
            raise ValueError(f"`attack_steps` must be >= 1, got {attack_steps}")
        self.process = process
        self.weighting = weighting or Weighting()
        self.radius = radius or RadiusSchedule()
        self.attack = attack
        self.attack_steps = attack_steps
        self.equivariant = equivariant

    def __call__(
        self,
        denoise: Callable[[Tensor], Tensor],
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The penalty, a scalar to be added to the loss.

        denoise: noisy (B, ...) => prediction (B, ...), with t and conditions bound; t: (B,), in the
        network's unit, whole numbers for a discrete process; prediction: what it gave for `noisy`,
        *not detached*: the gradient must flow through both branches, or training diverges. For a
        network with dropout see `shared_dropout`.
        """
        return self.per_sample(denoise, noisy, t, prediction, generator).mean()

    def per_sample(
        self,
        denoise: Callable[[Tensor], Tensor],
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None = None,
        attacked: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As above, (B,). attacked: the network that the attack differentiates; under
        DistributedDataParallel the unwrapped one, whose extra passes do not touch the buckets."""
        moved = self.move(attacked or denoise, noisy, t, prediction, generator)
        return self.compare(denoise(moved.noisy), prediction, moved)

    def move(
        self,
        denoise: Callable[[Tensor], Tensor],
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Moved:
        """Chooses w. prediction: at `noisy`; where it is None an attack asks `denoise` for it, if
        it can in one batch with the perturbed input, which then has twice as many rows."""
        alpha, sigma = self.process(t, noisy)
        radius = self.radius(sigma, generator) * self.weighting.reach(alpha, sigma)

        def moved(w: Tensor) -> Tensor:
            return (noisy + sigma * w).to(noisy.dtype)  # what the network was given, it gets again

        def displacement(w: Tensor) -> Tensor:
            if still is None:
                at_moved, at_noisy = denoise(torch.cat([moved(w), noisy])).float().chunk(2)
                return at_moved - at_noisy
            return denoise(moved(w)).float() - still

        by_gradient = self.attack == "gradient"
        still = None if prediction is None else prediction.detach().float()
        if self.attack == "random":
            w = random_perturbation(noisy, radius, generator)
        else:
            if still is None and (by_gradient or self.attack_steps > 1):
                with torch.no_grad():
                    still = denoise(noisy).float()
            w = adversarial_perturbation(
                displacement, noisy, radius, generator, self.attack_steps, by_gradient=by_gradient
            )
        shift = self.process.parameterization.shift(w, alpha, sigma) if self.equivariant else 0.0
        return Moved(moved(w), shift, self.weighting(w, radius, alpha, sigma))

    @staticmethod
    def compare(at_moved: Tensor, prediction: Tensor, moved: Moved) -> Tensor:
        """weighting * || at_moved - prediction - shift ||^2.  =>  (B,)."""
        residual = at_moved.float() - prediction.float() - moved.shift
        return moved.weighting * residual.square().flatten(1).mean(1)


@dataclass
class Moved:
    """The same samples at noise + w: what the network sees, (B, ...); what its prediction must have
    moved by; the weighting, (B,)."""

    noisy: Tensor
    shift: Tensor | float
    weighting: Tensor


@dataclass
class Loss:
    """denoising: (B,); penalty: (k,), of some rows of the batch, weight included, empty where there
    is none."""

    denoising: Tensor
    penalty: Tensor

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        return self.denoising.mean() + (self.penalty.mean() if self.penalty.numel() else 0.0)


class Objective:
    """Plain denoising (Ho et al. 2020), plus a penalty on a share of each batch.

    penalty: None for plain training. fraction: the share of the samples, in (0, 1], that the
    penalty looks at; every: it does so in every so-manieth step, at as many times more of a batch.
    An unbiased estimate at a fraction of the cost, see rows.py. Masks cannot be shared between
    different rows: a network with dropout needs fraction 1.
    """

    def __init__(
        self,
        process: NoiseProcess,
        penalty: EquivariancePenalty | None = None,
        fraction: float = 1.0,
        every: int = 1,
    ):
        check_share(fraction, every)
        self.process = process
        self.penalty = penalty if penalty is None or penalty.weighting.weight > 0 else None
        self.fraction = fraction
        self.every = every

    def __call__(
        self,
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
        sample: Tensor,
        t: Tensor,
        noise: Tensor,
        generator: torch.Generator | None = None,
        *,
        levels: Tensor | None = None,
        attacked: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        regularize: bool = True,
        turn: int | None = None,
    ) -> Loss:
        """denoise(noisy, t, rows): `rows`, (k,), says which rows of the batch these are, so that
        the caller can take the same rows of its conditions; sample, noise: (B, ...); t: (B,);
        levels: (B,) or (B, C), the noise in each sample, or channel, in its own units (`ambient`);
        regularize: False leaves the penalty out of this step, at the cost of a plain one; turn: the
        number of this call, 0, 1, ..., the same on all ranks, by which `every` and a fraction that
        is not a whole number of samples are counted; None looks at the most that there is."""
        alpha, sigma = self.process(t, sample)
        noisy = self.corrupt(sample, noise, alpha, sigma, generator, levels)
        count, factor = rows_in_turn(len(t), self.fraction, self.every, turn)
        attacked = attacked or denoise
        if self.penalty is None or not regularize or not count:
            prediction, penalty = denoise(noisy, t, _rows(t)), sample.new_zeros(0)
        elif count == len(t):
            prediction, penalty = self._in_turn(denoise, attacked, noisy, t, generator)
        else:
            gate = self.penalty.weighting.mean_gate(alpha, sigma)
            rows, share = choose_rows(gate, count, generator)
            prediction, penalty = self._at_once(denoise, attacked, noisy, t, rows, generator)
            factor = factor * share
        denoising = self.denoising(prediction.float(), noisy, sample, noise, alpha, sigma, levels)
        return Loss(denoising, factor * penalty)

    def _in_turn(self, denoise, attacked, noisy, t, generator) -> tuple[Tensor, Tensor]:
        """The penalty of all rows, branch after branch, with the same dropout masks."""
        replayed = shared_dropout(denoise, noisy.device)
        attacked = shared_dropout(attacked, noisy.device)
        rows = _rows(t)
        prediction = denoise(noisy, t, rows)
        return prediction, self.penalty.per_sample(
            lambda x: replayed(x, t, rows),
            noisy,
            t,
            prediction,
            generator,
            attacked=lambda x: attacked(x, t, rows),
        )

    def _at_once(self, denoise, attacked, noisy, t, rows, generator) -> tuple[Tensor, Tensor]:
        """The penalty of some rows, whose second branch goes through the network with the batch: by
        themselves a few take almost as long as many."""

        def of_rows(x: Tensor) -> Tensor:
            again = rows.repeat(len(x) // len(rows))
            return attacked(x, t[again], again)

        moved = self.penalty.move(of_rows, noisy[rows], t[rows], generator=generator)
        both = torch.cat([_rows(t), rows])
        prediction, at_moved = denoise(torch.cat([noisy, moved.noisy]), t[both], both).split(
            [len(t), len(rows)]
        )
        return prediction, self.penalty.compare(at_moved, prediction[rows], moved)

    def corrupt(self, sample, noise, alpha, sigma, generator, levels) -> Tensor:
        """=>  noisy (B, ...). Peers override this, or `denoising`, or both."""
        return alpha * sample + sigma * noise

    def denoising(self, prediction, noisy, sample, noise, alpha, sigma, levels) -> Tensor:
        """=>  the loss of each sample, (B,)."""
        target = self.process.parameterization.target(sample, noise, alpha, sigma)
        return (prediction - target).square().flatten(1).mean(1)


def _rows(t: Tensor) -> Tensor:
    """Those of a whole batch."""
    return torch.arange(len(t), device=t.device)


class RobustObjective(Objective):
    """Plain denoising with the regularizer: the default `EquivariancePenalty` unless given."""

    def __init__(
        self,
        process: NoiseProcess,
        penalty: EquivariancePenalty | None = None,
        fraction: float = 1.0,
        every: int = 1,
    ):
        super().__init__(process, penalty or EquivariancePenalty(process), fraction, every)
