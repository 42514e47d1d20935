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
from .parameterization import Parameterization
from .perturbation import (
    ATTACKS,
    adversarial_perturbation,
    displacement_of,
    random_perturbation,
)
from .process import NoiseProcess
from .radius import RadiusSchedule, unit_sigma
from .rows import check_share, choose_rows, rows_in_turn
from .weighting import Weighting


class EquivariancePenalty:
    """weighting * || denoise(noisy + sigma w, t) - prediction - shift(w) ||^2, for any loop.

    attack: "displacement", "gradient" or "random", see perturbation.py; attack_steps: of the first
    two, more than 1 is PGD and its like; equivariant=False gives the *invariance* of adversarially
    trained classifiers, shift(w) = 0, which a denoiser must not have (the paper's negative
    control); precision: in which the network sees its input, where that is not `noisy`'s own, as
    under autocast: what rounding adds to w is part of how far the prediction must move.
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
        precision: torch.dtype | None = None,
    ):
        if attack not in ATTACKS:
            raise ValueError(f"`attack` must be one of {', '.join(ATTACKS)}, got {attack!r}")
        if attack_steps < 1:
            raise ValueError(f"`attack_steps` must be >= 1, got {attack_steps}")
        if not equivariant and process.parameterization is Parameterization.SAMPLE:
            raise ValueError(
                "a sample that stays where it is when its noise moves is what equivariance asks: "
                "for predictors of the sample there is no invariance to compare with"
            )
        self.process = process
        self.weighting = weighting or Weighting()
        self.radius = radius or RadiusSchedule()
        self.attack = attack
        self.attack_steps = attack_steps
        self.equivariant = equivariant
        self.precision = precision

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
        unit of the process: what a scheduler's `timesteps` are, 1000 * sigma for flow matching (of
        which FLUX's network is given a thousandth); prediction: what it gave for `noisy`,
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
        """As above, (B,). attacked: the network that the attack asks; under
        DistributedDataParallel the unwrapped one, whose extra passes do not touch the buckets."""
        perturbed = self.perturb(attacked or denoise, noisy, t, prediction, generator)
        return self.compare(denoise(perturbed.noisy), prediction, perturbed)

    def perturb(
        self,
        denoise: Callable[[Tensor], Tensor],
        noisy: Tensor,
        t: Tensor,
        prediction: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Perturbed:
        """Chooses w. prediction: at `noisy`; where it is None an attack asks `denoise` for it, if
        it can in one batch with the perturbed input, which then has twice as many rows."""
        alpha, sigma = self.process(t, noisy)
        radius = self.radius(unit_sigma(alpha, sigma), generator)
        radius = radius * self.weighting.reach(alpha, sigma)
        parameterization = self.process.parameterization
        precision = self.precision or noisy.dtype

        def seen(w: Tensor) -> Tensor:
            return (noisy + sigma * w).to(precision).to(noisy.dtype)  # as the network is given it

        if self.attack == "random":
            w = random_perturbation(noisy, radius, generator)
        else:
            by_gradient = self.attack == "gradient"
            once = not by_gradient and self.attack_steps == 1
            to_noise = parameterization.to_noise
            moved_at = displacement_of(denoise, noisy, prediction, once)

            def displacement(w: Tensor) -> Tensor:
                moved = moved_at(seen(w))
                return moved if by_gradient else to_noise(sigma * w, moved, alpha, sigma)

            w = adversarial_perturbation(
                displacement, noisy, radius, generator, self.attack_steps, by_gradient=by_gradient
            )
        moved = seen(w)
        if precision.itemsize < 4:
            w = (moved.float() - noisy.to(precision).float()) / sigma.clamp_min(1e-12)
        shift = parameterization.shift(w, alpha, sigma) if self.equivariant else 0.0
        return Perturbed(moved, shift, self.weighting(w, radius, alpha, sigma))

    @staticmethod
    def compare(at_perturbed: Tensor, prediction: Tensor, perturbed: Perturbed) -> Tensor:
        """weighting * || at_perturbed - prediction - shift ||^2.  =>  (B,). ValueError if only one
        of the branches has a gradient."""
        if at_perturbed.requires_grad != prediction.requires_grad:
            which = "what `denoise` gives" if prediction.requires_grad else "`prediction`"
            raise ValueError(
                f"{which} has no gradient: do not detach it, nor make it under no_grad; the "
                "gradient must flow through both branches, or training diverges"
            )
        residual = at_perturbed.float() - prediction.float() - perturbed.shift
        return perturbed.weighting * residual.square().flatten(1).mean(1)


@dataclass
class Perturbed:
    """Samples at noise + w. noisy: what the network sees, (B, ...); shift: how its prediction must
    have moved, like it; weighting: (B,)."""

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
            prediction, penalty = denoise(noisy, t, all_rows(t)), sample.new_zeros(0)
        elif count == len(t):
            prediction, penalty = self._whole_batch(denoise, attacked, noisy, t, generator)
        else:
            gate = self.penalty.weighting.mean_gate(alpha, sigma)
            rows, share = choose_rows(gate, count, generator)
            prediction, penalty = self._some_rows(denoise, attacked, noisy, t, rows, generator)
            factor = factor * share
        denoising = self.denoising(prediction.float(), noisy, sample, noise, alpha, sigma, levels)
        return Loss(denoising, factor * penalty)

    def _whole_batch(self, denoise, attacked, noisy, t, generator) -> tuple[Tensor, Tensor]:
        """=>  prediction; penalty of all rows, branch after branch, with the same dropout masks."""
        rows = all_rows(t)
        replayed = shared_dropout(lambda network, x: network(x, t, rows), noisy.device)
        prediction = replayed(denoise, noisy)
        return prediction, self.penalty.per_sample(
            lambda x: replayed(denoise, x),
            noisy,
            t,
            prediction,
            generator,
            attacked=lambda x: replayed(attacked, x),
        )

    def _some_rows(self, denoise, attacked, noisy, t, rows, generator) -> tuple[Tensor, Tensor]:
        """=>  prediction; penalty of some rows, whose second branch goes through the network in one
        pass with the batch: by themselves a few take almost as long as many."""

        def of_rows(x: Tensor) -> Tensor:
            again = rows.repeat(len(x) // len(rows))
            return attacked(x, t[again], again)

        perturbed = self.penalty.perturb(of_rows, noisy[rows], t[rows], generator=generator)
        both = torch.cat([all_rows(t), rows])
        prediction, at_perturbed = denoise(
            torch.cat([noisy, perturbed.noisy]), t[both], both
        ).split([len(t), len(rows)])
        return prediction, self.penalty.compare(at_perturbed, prediction[rows], perturbed)

    def corrupt(self, sample, noise, alpha, sigma, generator, levels) -> Tensor:
        """=>  noisy (B, ...). Peers override this, or `denoising`, or both."""
        return alpha * sample + sigma * noise

    def denoising(self, prediction, noisy, sample, noise, alpha, sigma, levels) -> Tensor:
        """=>  the loss of each sample, (B,)."""
        target = self.process.parameterization.target(sample, noise, alpha, sigma)
        return (prediction - target).square().flatten(1).mean(1)


def all_rows(t: Tensor) -> Tensor:
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
