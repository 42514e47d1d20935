"""What a network predicts. Everything follows from target = c_sample * sample + c_noise * noise."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor


class Parameterization(StrEnum):
    """The values are diffusers' `prediction_type` names, with `flow` for flow matching."""

    EPSILON = "epsilon"  # DDPM, SD 1.x, SDXL
    V_PREDICTION = "v_prediction"  # SD 2.x (Salimans & Ho 2022)
    FLOW = "flow"  # SD 3, FLUX; noise - sample, alpha = 1 - sigma
    SAMPLE = "sample"  # x0-predictors, EDM's denoiser D

    @classmethod
    def _missing_(cls, value: object):
        names = ", ".join(p.value for p in cls)
        raise ValueError(f"unknown parameterization {value!r}; one of: {names}")

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(c_sample, c_noise) of the linear target."""
        match self:
            case Parameterization.EPSILON:
                return 0.0, 1.0
            case Parameterization.V_PREDICTION:
                return -sigma, alpha
            case Parameterization.FLOW:
                return -1.0, 1.0
            case Parameterization.SAMPLE:
                return 1.0, 0.0

    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network is regressed on, (B, ...)."""
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return c_sample * sample + c_noise * noise

    def shift(self, w: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How the prediction must move when the noise moves by w: target(0, w)."""
        return self.coefficients(alpha, sigma)[1] * w

    def to_sample(self, noisy: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean sample that a prediction implies, from noisy and target (2 linear equations).

        Infinite at alpha = 0 for epsilon, which says nothing about the sample there.
        """
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return (c_noise * noisy - sigma * prediction) / (alpha * c_noise - sigma * c_sample)

    def to_noise(self, noisy: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise that a prediction implies, likewise. Infinite at sigma = 0 for `sample`."""
        if self is Parameterization.EPSILON:
            return prediction  # at alpha = 0 as well
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return (alpha * prediction - c_sample * noisy) / (alpha * c_noise - sigma * c_sample)

    def sample_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d prediction / d sample at fixed noisy: turns an error of the sample into one of the
        prediction. -alpha/sigma (epsilon), -1/sigma (v, flow at alpha + sigma = 1), 1 (sample)."""
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return c_sample - c_noise * alpha / sigma
