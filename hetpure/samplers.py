"""One step of diffusion as a pure function: forward, jump, DDIM, DDPM, VP-SDE and its flow ODE.

The state is in model units, [-1, 1]. Noise is an argument; noise levels are signal variances
`alpha = alphas_cumprod[t]`, as floats or as tensors that broadcast; a target level of 1 is the
clean image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

Alpha = float | Tensor
Variance = Literal["fixed_large", "fixed_small"]


def add_noise(x0: Tensor, alpha: Alpha, noise: Tensor) -> Tensor:
    """q(x0, t, n) = sqrt(abar_t) x0 + sqrt(1 - abar_t) n (DDPM, eq. 4)."""
    x: Tensor = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    return x


def jump_forward(x: Tensor, alpha: float, alpha_up: float, noise: Tensor) -> Tensor:
    """From level abar_t up to the noisier abar_s in one draw; the law of s-t single steps."""
    return add_noise(x, alpha_up / alpha, noise)


def ddim_step(
    x0: Tensor,
    predicted_noise: Tensor,
    alpha: float,
    alpha_next: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 with sigma of eq. 16): from abar_t down to `alpha_next`."""
    beta = 1 - alpha / alpha_next
    sigma = eta * ((1 - alpha_next) / (1 - alpha) * beta) ** 0.5
    direction = max(1 - alpha_next - sigma**2, 0.0) ** 0.5
    x_next: Tensor = alpha_next**0.5 * x0 + direction * predicted_noise
    return x_next if sigma == 0 or noise is None else x_next + sigma * noise


def ddpm_step(
    x: Tensor,
    x0: Tensor,
    alpha: float,
    alpha_next: float,
    variance: Variance = "fixed_large",
    noise: Tensor | None = None,
) -> Tensor:
    """Ancestral step (DDPM, eqs. 6-7) from abar_t down to `alpha_next`."""
    alpha_step = alpha / alpha_next
    beta_step = 1 - alpha_step
    weight_x0 = alpha_next**0.5 * beta_step / (1 - alpha)
    weight_x = alpha_step**0.5 * (1 - alpha_next) / (1 - alpha)
    mean: Tensor = weight_x0 * x0 + weight_x * x
    if noise is None or alpha_next == 1:  # the last step ends in the mean, which is x0
        return mean
    return mean + math.sqrt(ddpm_variance(alpha, alpha_next, variance)) * noise


def ddpm_variance(alpha: float, alpha_next: float, variance: Variance) -> float:
    """Of an ancestral step: its beta (`fixed_large`), or that of the posterior (`fixed_small`)."""
    scale = 1.0 if variance == "fixed_large" else (1 - alpha_next) / (1 - alpha)
    return scale * (1 - alpha / alpha_next)


def vp_drift(x: Tensor, x0: Tensor, alpha: float, score_weight: float) -> Tensor:
    """Drift of the reverse VP-SDE (Song et al. 2021, eq. 6; score weight 1) or of its probability
    flow ODE (eq. 13; 1/2), in the clock tau = -log abar. x0 is the expected image.

    In that clock the forward process is dx = -x/2 dtau + dw for every schedule, and one grid step
    lasts log(alpha_next / alpha).
    """
    drift: Tensor = x / 2 + score_weight * ((alpha**0.5 * x0 - x) / (1 - alpha))
    return drift


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """How a purifier takes one reverse step.

    Args:
        clip_x0: clamp the predicted image to [-1, 1] before each step.
    """

    clip_x0: bool = False

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether a step asks for noise."""

    @abstractmethod
    def step(
        self,
        x: Tensor,
        x0: Tensor,
        predicted_noise: Tensor,
        alpha: float,
        alpha_next: float,
        noise: Tensor | None,
    ) -> Tensor:
        """The state x (B, C, H, W) at abar_t taken to `alpha_next`, given both predictions."""

    def clip(self, x0: Tensor) -> Tensor:
        """The predicted image as the step should use it."""
        return x0.clamp(-1, 1) if self.clip_x0 else x0


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """DDIM reverse steps.

    Args:
        eta: 0 is deterministic, 1 is as noisy as DDPM.
    """

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self,
        x: Tensor,
        x0: Tensor,
        predicted_noise: Tensor,
        alpha: float,
        alpha_next: float,
        noise: Tensor | None,
    ) -> Tensor:
        return ddim_step(x0, predicted_noise, alpha, alpha_next, self.eta, noise)


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """DDPM ancestral reverse steps, clipped as in ADDT's evaluation.

    Args:
        variance: `fixed_large` is the step's beta, `fixed_small` the posterior variance.
    """

    clip_x0: bool = True
    variance: Variance = "fixed_large"
    stochastic = True

    def step(
        self,
        x: Tensor,
        x0: Tensor,
        predicted_noise: Tensor,
        alpha: float,
        alpha_next: float,
        noise: Tensor | None,
    ) -> Tensor:
        return ddpm_step(x, x0, alpha, alpha_next, self.variance, noise)


class ContinuousSampler(Sampler):
    """Euler steps of a differential equation, which also has a continuous adjoint."""

    score_weight: ClassVar[float]

    def drift(self, x: Tensor, x0: Tensor, alpha: float) -> Tensor:
        """Of the state x (B, C, H, W) at abar_t, given the predicted image, in -log abar."""
        return vp_drift(x, self.clip(x0), alpha, self.score_weight)

    def step(
        self,
        x: Tensor,
        x0: Tensor,
        predicted_noise: Tensor,
        alpha: float,
        alpha_next: float,
        noise: Tensor | None,
    ) -> Tensor:
        length = math.log(alpha_next / alpha)
        x_next = x + length * vp_drift(x, x0, alpha, self.score_weight)
        if not self.stochastic:
            return x_next
        assert noise is not None, "the SDE's step needs noise"
        return x_next + math.sqrt(length) * noise


@dataclass(frozen=True, kw_only=True)
class VPSDE(ContinuousSampler):
    """Euler-Maruyama steps of the reverse VP-SDE (DiffPure, Nie et al. 2022)."""

    score_weight = 1.0
    stochastic = True


@dataclass(frozen=True, kw_only=True)
class VPODE(ContinuousSampler):
    """Euler steps of the VP-SDE's probability flow ODE (Song et al. 2021)."""

    score_weight = 0.5
    stochastic = False
