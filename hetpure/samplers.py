"""One step of diffusion: forward, jump, DDIM, DDPM, VP-SDE and its flow ODE.

The state is in model units, [-1, 1]. Noise is an argument; noise levels are signal variances
`alpha = alphas_cumprod[t]`; a target level of 1 is the clean image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hetpure.errors import FieldError

Variance = Literal["fixed_large", "fixed_small"]


def add_noise(x0: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """q(x0, t, n) = sqrt(abar_t) x0 + sqrt(1 - abar_t) n (DDPM, eq. 4)."""
    x: Tensor = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    return x


def jump_forward(x: Tensor, alpha: float, alpha_up: float, noise: Tensor) -> Tensor:
    """From level abar_t up to the noisier abar_s in one draw; the law of s-t single steps."""
    return add_noise(x, alpha_up / alpha, noise)


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
    def transition(
        self, x: Tensor, x0: Tensor, predicted_noise: Tensor, alpha: float, alpha_next: float
    ) -> tuple[Tensor, float]:
        """Mean (B, C, H, W) and standard deviation of the state at `alpha_next`, given the state x
        at abar_t and both predictions there."""

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
        mean, std = self.transition(x, x0, predicted_noise, alpha, alpha_next)
        if std == 0:
            return mean
        assert noise is not None, "a stochastic step needs noise"
        return mean + std * noise

    def clip(self, x0: Tensor) -> Tensor:
        """The predicted image as the step should use it."""
        return x0.clamp(-1, 1) if self.clip_x0 else x0


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """DDIM reverse steps (Song et al. 2021, eq. 12 with sigma of eq. 16).

    Args:
        eta: 0 is deterministic, 1 is as noisy as DDPM.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise FieldError(self, "eta", f"must be in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def transition(
        self, x: Tensor, x0: Tensor, predicted_noise: Tensor, alpha: float, alpha_next: float
    ) -> tuple[Tensor, float]:
        beta = 1 - alpha / alpha_next
        sigma = self.eta * ((1 - alpha_next) / (1 - alpha) * beta) ** 0.5
        direction = max(1 - alpha_next - sigma**2, 0.0) ** 0.5
        return alpha_next**0.5 * x0 + direction * predicted_noise, sigma


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """DDPM ancestral reverse steps (DDPM, eqs. 6-7), clipped as in ADDT's evaluation.

    Args:
        variance: `fixed_large` is the step's beta, `fixed_small` the posterior variance.
    """

    clip_x0: bool = True
    variance: Variance = "fixed_large"
    stochastic = True

    def step_variance(self, alpha: float, alpha_next: float) -> float:
        """Variance of the step's noise."""
        scale = 1.0 if self.variance == "fixed_large" else (1 - alpha_next) / (1 - alpha)
        return scale * (1 - alpha / alpha_next)

    def transition(
        self, x: Tensor, x0: Tensor, predicted_noise: Tensor, alpha: float, alpha_next: float
    ) -> tuple[Tensor, float]:
        alpha_step = alpha / alpha_next
        weight_x0 = alpha_next**0.5 * (1 - alpha_step) / (1 - alpha)
        weight_x = alpha_step**0.5 * (1 - alpha_next) / (1 - alpha)
        mean = weight_x0 * x0 + weight_x * x
        if alpha_next == 1:  # the last step ends in the mean, which is x0
            return mean, 0.0
        return mean, math.sqrt(self.step_variance(alpha, alpha_next))


class ContinuousSampler(Sampler):
    """Euler steps of a differential equation, which also has a continuous adjoint: the reverse
    VP-SDE (Song et al. 2021, eq. 6; score weight 1) or its probability flow ODE (eq. 13; 1/2).

    The clock is tau = -log abar. There the forward process is dx = -x/2 dtau + dw for every
    schedule, and one grid step lasts log(alpha_next / alpha).
    """

    score_weight: ClassVar[float]

    def drift(self, x: Tensor, x0: Tensor, alpha: float) -> Tensor:
        """Of the state x (B, C, H, W) at abar_t; x0 is the expected image."""
        drift: Tensor = x / 2 + self.score_weight * ((alpha**0.5 * x0 - x) / (1 - alpha))
        return drift

    def transition(
        self, x: Tensor, x0: Tensor, predicted_noise: Tensor, alpha: float, alpha_next: float
    ) -> tuple[Tensor, float]:
        length = math.log(alpha_next / alpha)
        std = math.sqrt(length) if self.stochastic else 0.0
        return x + length * self.drift(x, x0, alpha), std


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
