"""What a network predicts. Everything follows from target = c_sample * sample + c_noise * noise.

In every function alpha and sigma are (B, 1, ...), as `NoiseProcess` gives them.
"""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor


class Parameterization(StrEnum):
    """The values are diffusers' `prediction_type` names, with `flow` for flow matching."""

    EPSILON = "epsilon"  # DDPM (Ho et al. 2020), SD 1.x, SDXL
    V_PREDICTION = "v_prediction"  # Salimans & Ho 2022, SD 2.x
    FLOW = "flow"  # rectified flow (Liu et al. 2023), SD 3, FLUX: noise - sample, alpha = 1 - sigma
    SAMPLE = "sample"  # x0-predictors, the denoiser D of EDM (Karras et al. 2022)

    @classmethod
    def _missing_(cls, value: object) -> Parameterization:
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
        """The regression target of the network: (B, ...). sample, noise: (B, ...)."""
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return c_sample * sample + c_noise * noise

    def shift(self, w: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How far the prediction must move when the noise moves by w: target(0, w), (B, ...).

        The equivariance of L_AT: f(x_{t+w}) = f(x_t) + shift(w). For epsilon shift(w) = w, as in
        the paper; for the others the same statement about the implied noise.
        """
        return self.coefficients(alpha, sigma)[1] * w

    def to_sample(self, noisy: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean sample that a prediction implies: (B, ...).

        Solves the two linear equations of `noisy` and `target`. Infinite for epsilon at alpha = 0,
        where the prediction says nothing about the sample.
        """
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return (c_noise * noisy - sigma * prediction) / (alpha * c_noise - sigma * c_sample)

    def to_noise(self, noisy: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise that a prediction implies: (B, ...). Infinite for `sample` at sigma = 0."""
        if self is Parameterization.EPSILON:
            return prediction  # also right at alpha = 0
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return (alpha * prediction - c_sample * noisy) / (alpha * c_noise - sigma * c_sample)

    def sample_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d prediction / d sample at fixed noisy: (B, 1, ...).

        Multiplies an error of the clean sample into an error of the prediction. -alpha / sigma for
        epsilon, -1 / sigma for v and for flow (where alpha + sigma = 1), 1 for sample.
        """
        c_sample, c_noise = self.coefficients(alpha, sigma)
        return c_sample - c_noise * alpha / sigma
