"""What the penalty will do to data, computed before any training.

For Gaussian data of standard deviation tau along some direction, the optimal denoiser is linear.
With L = weight * gate it is that of tau_e^2 = tau^2 / (1 + L), and the probability-flow ODE
dy/ds = (y - x0_hat) / s multiplies y by

    d ln y / d ln s = s^2 / (tau_e^2 + s^2),        s = sigma / alpha.

A random perturbation w points in all directions equally. An attack follows the sign of J^T J w
(`gradient`, J: how far the prediction moves with the noise) or of J w (`displacement`, J: how far
the implied noise moves). The implied noise moves by f = s^2 / (tau_e^2 + s^2) of w, the implied
clean sample by s (1 - f). So J is f for the implied noise, and c_sample s (1 - f) + c_noise f for
the prediction. Where f is large there are few data, so an attack finds those directions. Only the
gradient attack on a network that predicts the clean sample finds the others.

A vector of signs puts 2 / pi of its energy along the direction g that it follows, in proportion to
g^2, and spreads the rest evenly. L is multiplied by that share. So at equal weight an attack
shrinks noise more and structure less than a random perturbation, by its gradient more than along
the displacement.

With a band per channel, a direction's gate is the mean of the channels' gates, weighted by how much
of the direction lies in each channel. That is exact for directions within one channel.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from .parameterization import Parameterization
from .registry import ATTACKS
from .weighting import Preset, Weighting

STEPS = 600  # of the integral over ln s: a relative error of at most 1e-3
ITERATIONS = 5  # fixed point: the attack depends on the denoiser, and the denoiser on the attack


def forecast_std(
    tau: Tensor,
    weighting: Weighting,
    attack: str = "displacement",
    parameterization: Parameterization | str = Parameterization.EPSILON,
    shares: Tensor | None = None,
) -> Tensor:
    """Standard deviations of the samples after training with the penalty on all samples.

    tau: (D,), standard deviations of the data along their principal directions.
    shares: (D, C), how much of each direction lies in each channel; each row sums to 1. Needed
        if the weighting has a band per channel.
    =>  (D,). For the attack "random" this is `tau * weighting.std_ratio(tau)`.

    Raises ValueError for an unknown attack, for the preset `paper` (as `std_ratio` does), and for
    shares that do not fit.
    """
    if attack not in ATTACKS:
        raise ValueError(f"`attack` must be one of {', '.join(ATTACKS)}, got {attack!r}")
    if weighting.preset is Preset.PAPER:
        raise ValueError("a forecast is known for the presets `normalized` and `band`, got `paper`")
    variance = tau.double().square().clamp_min(1e-12)
    top = 100 * float(variance.max().sqrt())
    s = torch.logspace(0, -6, STEPS, dtype=torch.float64)[:, None] * top
    gate = weighting.gate(torch.ones_like(s), s)
    if gate.shape[1] > 1:
        expected = (len(tau), gate.shape[1])
        if shares is None or shares.shape != expected:
            got = None if shares is None else tuple(shares.shape)
            raise ValueError(f"`shares` must be {expected}, one column per band, got {got}")
        gate = gate @ shares.double().T
    # Of a variance-preserving process. The coefficients of flow do not depend on alpha and sigma.
    alpha = (1 + s.square()).rsqrt()
    c_sample, c_noise = Parameterization(parameterization).coefficients(alpha, s * alpha)
    shrunk = variance.expand(STEPS, -1)
    for _ in range(1 if attack == "random" else ITERATIONS):
        share: Tensor | float = 1.0
        if attack != "random":
            noise_moves = s.square() / (shrunk + s.square())  # f
            followed = noise_moves.square()  # g^2
            if attack == "gradient":
                followed = (c_sample * s * (1 - noise_moves) + c_noise * noise_moves) ** 4
            followed = followed.clamp_min(1e-30)  # keeps the mean above 0
            share = 2 / pi * followed / followed.mean(1, keepdim=True) + (1 - 2 / pi)
        shrunk = variance / (1 + weighting.weight * gate * share)
    rate = s.square() / (shrunk + s.square())
    total = torch.trapezoid(rate, s[:, 0].log(), dim=0)
    return ((variance + top**2).sqrt() * total.exp()).to(tau.dtype)
