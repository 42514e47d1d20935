"""The noise process: t -> (alpha, sigma), and how a network's output relates to it."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from .parameterization import Parameterization


class NoiseProcess:
    """noisy = alpha(t) * sample + sigma(t) * noise, with noise ~ N(0, I).

    `alpha_sigma` gives both for t (B,), each (B,), in float32 or finer. `parameterization` says
    what the network predicts at that point (parameterization.py has all four).
    `times` are the times a training step draws from, (T,), in the unit of a scheduler's
    `timesteps`: integer steps for DDPM-like schedulers, 1000 * sigma for flow matching. Networks
    are given them as they are, but for FLUX's, which is given t / 1000.
    """

    def __init__(
        self,
        alpha_sigma: Callable[[Tensor], tuple[Tensor, Tensor]],
        parameterization: Parameterization | str,
        times: Tensor,
    ):
        self.alpha_sigma = alpha_sigma
        self.parameterization = Parameterization(parameterization)
        self.times = times

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseProcess:
        """Read the process off a diffusers scheduler, which is left untouched.

        Schedulers with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) give the
        variance-preserving process alpha^2 + sigma^2 = 1. For the Euler family this is the scaled
        input that the network sees, not the scheduler's own variance-exploding sample.
        FlowMatchEuler gives alpha = 1 - sigma, sigma = t / num_train_timesteps.

        Raises TypeError for a scheduler that is neither, and for a multistep sampler of flow
        models, whose `alphas_cumprod` are not the process.
        """
        config = scheduler.config
        if "flow" in config.get("prediction_type", "") or config.get("use_flow_sigmas", False):
            raise TypeError(
                f"{type(scheduler).__name__} with flow sigmas samples a flow model but does not "
                "say how it was trained; use FlowMatchEulerDiscreteScheduler.from_config(...)"
            )
        if hasattr(scheduler, "alphas_cumprod"):
            return cls.from_alphas_cumprod(scheduler.alphas_cumprod, config.prediction_type)
        if "FlowMatch" in type(scheduler).__name__:
            # `timesteps` may have been overwritten by set_timesteps; the shifted grid over which
            # training draws is rebuilt from the configuration.
            steps = config.num_train_timesteps
            training = type(scheduler).from_config(config)
            return cls.flow(training.timesteps.float(), steps)
        raise TypeError(
            f"{type(scheduler).__name__} has no `alphas_cumprod` and is not a flow-matching "
            "scheduler; build NoiseProcess(alpha_sigma, parameterization, times) by hand"
        )

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, parameterization: Parameterization | str
    ) -> NoiseProcess:
        """Discrete times 0..T-1; alphas_cumprod: (T,), in [0, 1]."""
        alphas_cumprod = alphas_cumprod.detach().cpu().double()
        steps = len(alphas_cumprod)
        on_device = {torch.device("cpu"): (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())}

        def table(t: Tensor) -> tuple[Tensor, Tensor]:
            if t.is_floating_point():
                raise TypeError(f"`t` must be integer steps 0..{steps - 1}, got {t.dtype}")
            if t.device.type == "cpu" and t.numel() and not 0 <= t.min() <= t.max() < steps:
                # A negative index would wrap around silently. (On a GPU the look would cost a
                # synchronisation per step.)
                raise IndexError(f"`t` must lie in 0..{steps - 1}, got {t.tolist()}")
            if t.device not in on_device:
                dtype = torch.float32 if t.device.type == "mps" else torch.float64
                on_device[t.device] = tuple(
                    c.to(t.device, dtype) for c in on_device[torch.device("cpu")]
                )
            alpha, sigma = on_device[t.device]
            return alpha[t.long()], sigma[t.long()]

        return cls(table, parameterization, torch.arange(steps))

    @classmethod
    def flow(cls, times: Tensor | None = None, num_train_timesteps: int = 1000) -> NoiseProcess:
        """Rectified flow: sigma = t / num_train_timesteps, alpha = 1 - sigma, t continuous."""
        if times is None:
            times = torch.arange(1, num_train_timesteps + 1).flip(0).float()

        def line(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = t.float() / num_train_timesteps
            return 1 - sigma, sigma

        return cls(line, Parameterization.FLOW, times)

    def __call__(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """t: (B,); like: (B, ...).  =>  alpha, sigma, each (B, 1, ...) in float32, like's device.

        Always float32: in bfloat16 the noise coefficient of the first steps would be 0.
        """
        shape = (-1, *[1] * (like.ndim - 1))
        alpha, sigma = self.alpha_sigma(t)
        alpha, sigma = (c.to(like.device, torch.float32).reshape(shape) for c in (alpha, sigma))
        return alpha, sigma

    def add_noise(self, sample: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sample, noise: (B, ...); t: (B,).  =>  noisy (B, ...), float32."""
        alpha, sigma = self(t, sample)
        return alpha * sample + sigma * noise

    def time_of(self, ratio: float) -> Tensor:
        """The time whose sigma / alpha is nearest to `ratio` > 0: a scalar of `times`."""
        alpha, sigma = self.alpha_sigma(self.times)
        return self.times[((sigma / alpha).log() - log(ratio)).abs().argmin()]

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform over `times`.  =>  (batch,), on the generator's device."""
        device = generator.device if generator is not None else self.times.device
        index = torch.randint(len(self.times), (batch,), generator=generator, device=device)
        return self.times.to(device, non_blocking=True)[index]
