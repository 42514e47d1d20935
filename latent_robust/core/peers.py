"""The methods that a user could train instead, in the notation of objective.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batch import BatchDenoiser, Loss, Noising, Objective, all_rows
from .levels import Levels
from .perturbation import adversarial_perturbation
from .process import NoiseProcess
from .radius import RadiusSchedule, unit_sigma
from .registry import GAMMA, HUBER_C

# 1 - k is 0 at s = level, where a noisy sample says nothing about the clean one. Ambient Diffusion
# Omni uses samples from 1.155 times their level on, where 1 - k is a quarter.
LEAST_GAIN = 0.25


class PseudoHuber(Objective):
    """Scheduled pseudo-Huber loss: 2 c (sqrt(d^2 + c^2) - c) elementwise, d = prediction - target.

    Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled
    Pseudo-Huber Loss". c(t) = (1 - c) / (1 + s)^2 + c with s = sigma / alpha, the SNR schedule of
    kohya's sd-scripts: nearly the squared error at low noise, robust to outliers at high noise.

    c: in (0, 1], else ValueError.
    """

    def __init__(self, process: NoiseProcess, c: float = HUBER_C):
        if not 0 < c <= 1:
            raise ValueError(f"pseudo-Huber `c` must lie in (0, 1], got {c}")
        super().__init__(process)
        self.c = c

    def denoising(self, prediction: Tensor, noisy: Tensor, of: Noising) -> Tensor:
        c = scheduled(self.c, of)
        huber = 2 * c * (((prediction - self.target(of)).square() + c.square()).sqrt() - c)
        return huber.flatten(1).mean(1)


class Hellinger(Objective):
    """NED: c^2 (1 - exp(-e / c^2)) for the mean squared error e of a sample.

    Li and Dong 2026, "Robust Diffusion Models via Divergence-Induced Weighted Denoising": the
    Hellinger divergence gives a sample the weight exp(-e / c^2), so that one of large error has
    hardly any influence. The paper's abstract leaves the scale open; c(t) is that of `PseudoHuber`.

    c: in (0, 1], else ValueError.
    """

    def __init__(self, process: NoiseProcess, c: float = HUBER_C):
        if not 0 < c <= 1:
            raise ValueError(f"Hellinger `c` must lie in (0, 1], got {c}")
        super().__init__(process)
        self.c = c

    def denoising(self, prediction: Tensor, noisy: Tensor, of: Noising) -> Tensor:
        scale = scheduled(self.c, of).flatten().square()
        error = super().denoising(prediction, noisy, of)
        return -scale * torch.expm1(-error / scale)


def scheduled(c: float, of: Noising) -> Tensor:
    """c(t) = (1 - c) / (1 + s)^2 + c, (B, 1, ...): 1 without noise, c in pure noise."""
    return (1 - c) * (of.alpha / (of.alpha + of.sigma)).square() + c


class InputPerturbation(Objective):
    """DDPM-IP: the network's input has noise + gamma * xi, xi ~ N(0, I); the target has noise only.

    Ning et al., ICML 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models".

    gamma: >= 0, else ValueError.
    """

    def __init__(self, process: NoiseProcess, gamma: float = GAMMA):
        if gamma < 0:
            raise ValueError(f"`gamma` must be >= 0, got {gamma}; 0 is plain training")
        super().__init__(process)
        self.gamma = gamma

    def corrupt(self, of: Noising, generator: torch.Generator | None) -> Tensor:
        xi = torch.randn(of.noise.shape, generator=generator, device=of.noise.device)
        return of.alpha * of.sample + of.sigma * (of.noise + self.gamma * xi)


class AdversarialDenoising(Objective):
    """AT_Diff: plain denoising of the noise that the network denoises worst.

    Wang et al., ICLR 2025, "Improved Diffusion-based Generative Model with Better Adversarial
    Robustness". Their loss || f(x_t + d) - eps - d / sqrt(1 - abar_t) ||^2, with d = sigma w, is
    plain training with noise + w in place of noise. w, |w| <= radius, *maximises that loss*.

    They keep one w over several updates of a batch ("free" training). Here each step computes its
    own, by `attack_steps` of gradient ascent, each of which costs one more pass.
    """

    def __init__(
        self, process: NoiseProcess, radius: RadiusSchedule | None = None, attack_steps: int = 1
    ):
        super().__init__(process)
        self.radius = radius or RadiusSchedule()
        self.attack_steps = attack_steps

    def __call__(
        self,
        denoise: BatchDenoiser,
        sample: Tensor,
        t: Tensor,
        noise: Tensor,
        generator: torch.Generator | None = None,
        *,
        attacked: BatchDenoiser | None = None,
        regularize: bool = True,
        **options: Any,
    ) -> Loss:
        if not regularize:
            return super().__call__(denoise, sample, t, noise, generator, **options)
        alpha, sigma = self.process(t, sample)
        network = attacked or denoise
        parameterization = self.process.parameterization
        target = self.target(Noising(sample, noise, alpha, sigma))

        def error(w: Tensor) -> Tensor:
            prediction = network(alpha * sample + sigma * (noise + w), t, all_rows(t)).float()
            return prediction - parameterization.shift(w, alpha, sigma) - target

        radius = self.radius(unit_sigma(alpha, sigma), generator)
        w = adversarial_perturbation(error, noise, radius, generator, self.attack_steps)
        return super().__call__(denoise, sample, t, noise + w, generator, **options)


class Ambient(Objective):
    """Ambient diffusion: a dirty sample is used only where noise hides its dirt.

    Daras et al. 2024, "Consistent Diffusion Meets Tweedie"; Daras et al. 2025, "Ambient Diffusion
    Omni". A sample is used at noise levels s = sigma / alpha >= usable_from; elsewhere its loss is
    0. If it holds Gaussian noise itself, y = x + level * xi, then with k = level^2 / s^2

        y_s = y + sqrt(s^2 - level^2) * noise
        (1 - k) * x0_hat(y_s) + k * y_s   is regressed on   y

    The residual is divided by 1 - k (by LEAST_GAIN at least), so that x0_hat counts as much as for
    a clean sample. It is expressed in the network's own parameterization, so level 0 is exactly
    plain training. Levels may differ between channels: all of this then holds per channel.

    Raises ValueError when called without `levels`.
    """

    def corrupt(self, of: Noising, generator: torch.Generator | None) -> Tensor:
        level = _column(_given(of).level, of.sigma)
        missing = (of.sigma.square() - (of.alpha * level).square()).clamp_min(0)
        return of.alpha * of.sample + missing.sqrt() * of.noise

    def denoising(self, prediction: Tensor, noisy: Tensor, of: Noising) -> Tensor:
        alpha, sigma, levels = of.alpha, of.sigma, _given(of)
        level = _column(levels.level, sigma)
        k = (level * alpha / sigma).square()
        # ((1 - k) x0_hat + k y_s - y) * d prediction / d sample, written so that it stays finite at
        # alpha = 0, where y_s = noisy / alpha is infinite.
        _, c_noise = self.process.parameterization.coefficients(alpha, sigma)
        gain = self.process.parameterization.sample_gain(alpha, sigma)
        ambient = level.square() * alpha / sigma.square() * noisy - of.sample
        residual = (1 - k) * (prediction - c_noise * noisy / sigma) + gain * ambient
        residual = residual / (1 - k).clamp_min(LEAST_GAIN)
        usable = alpha * _column(levels.usable_from, sigma) <= sigma
        return torch.where(usable.flatten(), residual.square().flatten(1).mean(1), 0.0)


def _given(of: Noising) -> Levels:
    if of.levels is None:
        raise ValueError("`ambient` needs `levels`, the noise level of each sample (0 = clean)")
    return of.levels


def _column(values: Tensor, like: Tensor) -> Tensor:
    """values: (B,) or (B, C); like: (B, 1, ...).  =>  (B, 1 or C, 1, ...), like's dtype, device."""
    return values.to(like).reshape(len(like), -1, *[1] * (like.ndim - 2))
