"""What the regularizer will do to data, before anything is trained.

Gaussian data of standard deviation tau along some direction, the optimal linear denoiser: with
L = weight * gate it is that of tau_e^2 = tau^2 / (1 + L), and the probability-flow ODE
dy/ds = (y - x0_hat) / s multiplies y by

    d ln y / d ln s = s^2 / (tau_e^2 + s^2),        s = sigma / alpha.

A random perturbation looks into all directions alike. An attack does not: it follows the sign of
J^T J w (`gradient`), where J is how far the prediction moves with the noise, or of J w, where J is
how far the implied noise does (`displacement`). The implied noise moves by f = s^2 / (tau_e^2 +
s^2) of w and the clean sample by s (1 - f), so that J is f, or c_sample s (1 - f) + c_noise f: an
attack finds the directions in which there are few data; by its gradient, on a network that predicts
the clean sample, the others. A vector of signs has the share 2 / pi of its energy along its
direction g, in proportion to g^2, and the rest everywhere; L counts that share. So an attack
shrinks noise more and structure less than the same weight does at random, by its gradient more so
than along the displacement.

Where each channel has a band of its own, a direction's gate is taken for the mean of its channels'
gates, by how much of the direction lies in each; exact for directions within one channel.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from .parameterization import Parameterization
from .registry import ATTACKS
from .weighting import Preset, Weighting

STEPS = 600  # of the integral over ln s; it is exact to 1e-3 there
ITERATIONS = 5  # the attack depends on the denoiser, which depends on the attack


def forecast_std(
    tau: Tensor,
    weighting: Weighting,
    attack: str = "displacement",
    parameterization: Parameterization | str = Parameterization.EPSILON,
    shares: Tensor | None = None,
) -> Tensor:
    """tau: (D,), standard deviations of the data along their principal directions.  =>  (D,),
    those of what is sampled after training with the regularizer at full cost. Without an attack
    this is `tau * weighting.std_ratio(tau)`. ValueError for the preset `paper`, as there.

    shares: (D, C), how much of each direction lies in each channel, rows of sum 1; where the
    weighting has a band for each."""
    if attack not in ATTACKS:
        raise ValueError(f"`attack` must be one of {', '.join(ATTACKS)}, got {attack!r}")
    if weighting.preset is Preset.PAPER:
        raise ValueError("a forecast is known for the presets `normalized` and `band`")
    variance = tau.double().square().clamp_min(1e-12)
    top = 100 * float(variance.max().sqrt())
    s = torch.logspace(0, -6, STEPS, dtype=torch.float64)[:, None] * top
    gate = weighting.gate(torch.ones_like(s), s)
    if gate.shape[1] > 1:
        if shares is None or shares.shape != (len(tau), gate.shape[1]):
            raise ValueError(f"`shares` must be ({len(tau)}, {gate.shape[1]}): a band each")
        gate = gate @ shares.double().T
    # As of a variance-preserving process; for flow the coefficients do not depend on it.
    alpha = (1 + s.square()).rsqrt()
    c_sample, c_noise = Parameterization(parameterization).coefficients(alpha, s * alpha)
    shrunk = variance.expand(STEPS, -1)
    for _ in range(1 if attack == "random" else ITERATIONS):
        share = 1.0
        if attack != "random":
            follows = s.square() / (shrunk + s.square())
            found = follows.square()
            if attack == "gradient":
                found = (c_sample * s * (1 - follows) + c_noise * follows) ** 4
            # g^2 along each direction, not so small anywhere that its mean would vanish
            found = found.clamp_min(1e-30)
            share = 2 / pi * found / found.mean(1, keepdim=True) + (1 - 2 / pi)
        shrunk = variance / (1 + weighting.weight * gate * share)
    rate = s.square() / (shrunk + s.square())
    total = torch.trapezoid(rate, s[:, 0].log(), dim=0)
    return ((variance + top**2).sqrt() * total.exp()).to(tau.dtype)
