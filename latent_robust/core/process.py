"""The noise process, t -> (alpha, sigma), and what the network predicts at that point."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from .parameterization import Parameterization


class NoiseProcess:
    """noisy = alpha(t) * sample + sigma(t) * noise, with noise ~ N(0, I); the paper's x_t.

    alpha_sigma: t (B,) => alpha (B,), sigma (B,), in float32 or finer.
    parameterization: what the network predicts at that point; parameterization.py has all four.
    times: (T,), the times that training draws from, in the unit of the scheduler's `timesteps`:
        integer steps for DDPM-like schedulers, 1000 * sigma for flow matching. Networks take these
        values unchanged, except FLUX, which takes t / 1000.

    Raises ValueError for an unknown parameterization.
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
        """The process of a diffusers scheduler. The scheduler is not changed.

        Schedulers with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) give the
        variance-preserving process, alpha^2 + sigma^2 = 1. For the Euler family this is the scaled
        input that the network gets, not the scheduler's own variance-exploding sample.
        FlowMatchEuler gives alpha = 1 - sigma, sigma = t / num_train_timesteps.

        Raises TypeError for a scheduler that is neither, and for a multistep sampler of flow
        models, whose `alphas_cumprod` do not describe its process.
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
            # set_timesteps may have overwritten `timesteps`; the (shifted) times of training are
            # rebuilt from the configuration.
            training = type(scheduler).from_config(config)
            return cls.flow(training.timesteps.float(), config.num_train_timesteps)
        raise TypeError(
            f"{type(scheduler).__name__} has no `alphas_cumprod` and is not a flow-matching "
            "scheduler; build NoiseProcess(alpha_sigma, parameterization, times) by hand"
        )

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, parameterization: Parameterization | str
    ) -> NoiseProcess:
        """Discrete times 0..T-1. alphas_cumprod: (T,), in [0, 1].

        The process raises TypeError for times that are not integers, and on the CPU IndexError for
        times outside 0..T-1.
        """
        alphas_cumprod = alphas_cumprod.detach().cpu().double()
        steps, cpu = len(alphas_cumprod), torch.device("cpu")
        tables = {cpu: (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())}

        def look_up(t: Tensor) -> tuple[Tensor, Tensor]:
            if t.is_floating_point():
                raise TypeError(f"`t` must be integer steps 0..{steps - 1}, got {t.dtype}")
            if t.device.type == "cpu" and t.numel() and not 0 <= t.min() <= t.max() < steps:
                # A negative index would wrap around silently. Not checked on a GPU, where reading t
                # would cost a synchronisation per step.
                raise IndexError(f"`t` must lie in 0..{steps - 1}, got {t.tolist()}")
            if t.device not in tables:
                dtype = torch.float32 if t.device.type == "mps" else torch.float64
                alpha, sigma = tables[cpu]
                tables[t.device] = alpha.to(t.device, dtype), sigma.to(t.device, dtype)
            alpha, sigma = tables[t.device]
            return alpha[t.long()], sigma[t.long()]

        return cls(look_up, parameterization, torch.arange(steps))

    @classmethod
    def flow(cls, times: Tensor | None = None, num_train_timesteps: int = 1000) -> NoiseProcess:
        """Rectified flow (Liu et al. 2023): sigma = t / num_train_timesteps, alpha = 1 - sigma.

        t is continuous. times: (T,), by default num_train_timesteps, ..., 2, 1.
        """
        if times is None:
            times = torch.arange(1, num_train_timesteps + 1).flip(0).float()

        def line(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = t.float() / num_train_timesteps
            return 1 - sigma, sigma

        return cls(line, Parameterization.FLOW, times)

    def __call__(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """t: (B,); like: (B, ...).  =>  alpha, sigma, each (B, 1, ...), float32, on like's device.

        Always float32: in bfloat16 the sigma of the first steps would be 0.
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
        """The element of `times`, (), whose sigma / alpha is nearest to `ratio` > 0, by its log."""
        alpha, sigma = self.alpha_sigma(self.times)
        return self.times[((sigma / alpha).log() - log(ratio)).abs().argmin()]

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Times drawn uniformly from `times`.  =>  (batch,), on the generator's device."""
        device = generator.device if generator is not None else self.times.device
        index = torch.randint(len(self.times), (batch,), generator=generator, device=device)
        return self.times.to(device, non_blocking=True)[index]
