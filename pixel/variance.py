"""Learned variance: L_hybrid of Improved DDPM (Nichol & Dhariwal 2021, eq. 15-16)."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from latent_robust.core import NoiseProcess

VLB_WEIGHT = 1e-3  # lambda of L_hybrid; L_vlb is estimated as T times the term of one time t


class LearnedVariance:
    """denoise() for a network with 2 C output channels, mean and variance.

    Returns the C channels of the mean. Keeps the outputs of the first call, which `loss` uses. The
    first rows of that call are the batch; perturbed samples follow it."""

    def __init__(self, network: nn.Module, process: NoiseProcess):
        self.network, self.process = network, process
        self.first: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        mean, variance = self.network(noisy, t).sample.float().chunk(2, dim=1)
        if self.first is None:
            # Detached: the mean is trained by L_simple alone (Nichol & Dhariwal, section 3.1).
            self.first = (noisy, mean.detach(), variance)
        return mean

    def loss(self, sample: Tensor, t: Tensor) -> Tensor:
        """lambda * T * KL( q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t) ) in bits per dimension.

        At t = 0, the negative log-likelihood of a Gaussian density, not of a discretized one.

        sample: (B, C, H, W), clean; t: (B,)."""
        noisy, prediction, output = (kept[: len(t)] for kept in self.first)
        alpha, sigma = self.process(t, sample)
        before = self.process((t - 1).clamp_min(0), sample)
        is_first = (t == 0).reshape(sigma.shape)
        alpha_before = torch.where(is_first, 1.0, before[0])
        variance_before = torch.where(is_first, 0.0, before[1].square())
        step = (alpha / alpha_before).square()  # alpha_t of DDPM; beta = 1 - alpha_t
        beta = 1 - step
        # beta-tilde is 0 at t = 0; Improved DDPM uses its value at t = 1 there.
        tilde = self._posterior_variance(t.clamp_min(1), sample)
        fraction = (output + 1) / 2
        log_variance = fraction * beta.log() + (1 - fraction) * tilde.log()

        implied = self.process.parameterization.to_sample(noisy, prediction, alpha, sigma)
        weight = alpha_before * beta / sigma.square()
        error = weight * (sample - implied)  # difference of the two posterior means
        kl = 0.5 * (log_variance - tilde.log() - 1 + (tilde + error.square()) / log_variance.exp())
        nll = 0.5 * (log(2 * pi) + log_variance + (sample - implied).square() / log_variance.exp())
        term = torch.where((variance_before > 0).expand_as(kl), kl, nll)
        per_sample = term.flatten(1).mean(1) / log(2)
        return VLB_WEIGHT * len(self.process.times) * per_sample.mean()

    def _posterior_variance(self, t: Tensor, like: Tensor) -> Tensor:
        alpha, sigma = self.process(t, like)
        alpha_before, sigma_before = self.process(t - 1, like)
        beta = 1 - (alpha / alpha_before).square()
        return beta * (sigma_before / sigma).square()
