"""The noise levels at which a diffusion network is trained: one for each image of an update."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.errors import FieldError, InputError, check_positive
from hetpure.noise import BatchNoise, Purpose
from hetpure.schedule import Level, Schedule

NEAR = 0.02  # of signal^2: the SDE and its schedule of T steps differ by some thousandths


class Levels(ABC):
    """A distribution of noise levels."""

    @abstractmethod
    def check(self, schedule: Schedule, prediction_type: str) -> None:
        """InputError where a network on this schedule cannot be trained at these levels."""

    @abstractmethod
    def draw(self, schedule: Schedule, noise: BatchNoise, like: Tensor) -> Level:
        """The level of each image of `like` (B, C, H, W), in its dtype, by addressed noise."""


@dataclass(frozen=True, kw_only=True)
class DiscreteLevels(Levels):
    """The schedule's indices, equally often (DDPM, Ho et al. 2020, Algorithm 1).

    Args:
        lowest: first index.
        highest: last index; None is the schedule's last.
    """

    lowest: int = 0
    highest: int | None = None

    def check(self, schedule: Schedule, prediction_type: str) -> None:
        last, highest = len(schedule) - 1, self._highest(schedule)
        if not 0 <= self.lowest <= highest <= last:
            wrong = f"gives timesteps {self.lowest} to {highest}: the schedule has 0 to {last}"
            raise FieldError(self, "lowest" if highest == last else "highest", wrong)

    def _highest(self, schedule: Schedule) -> int:
        return len(schedule) - 1 if self.highest is None else self.highest

    def draw(self, schedule: Schedule, noise: BatchNoise, like: Tensor) -> Level:
        drawn = noise.integers(Purpose.TIMESTEP, self._highest(schedule) - self.lowest + 1)
        return schedule.level(self.lowest + drawn, like)


@dataclass(frozen=True, kw_only=True)
class ContinuousLevels(Levels):
    """Times of the VP-SDE, uniform in [t_min, 1] (Song et al. 2021, eq. 11 and appendix C):
    signal^2 = exp(-(beta_max - beta_min) t^2 / 2 - beta_min t). The network is told t (T - 1), as
    the paper's is, so that it also serves at the schedule's indices.

    Args:
        beta_min: rate of the noise at time 0.
        beta_max: rate of the noise at time 1.
        t_min: earliest time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            allowed = "must be positive and at most beta_max"
            raise FieldError(self, "beta_min", f"{allowed} {self.beta_max}, got {self.beta_min}")
        if not 0 < self.t_min < 1:
            raise FieldError(self, "t_min", f"must be in (0, 1), got {self.t_min}")

    def check(self, schedule: Schedule, prediction_type: str) -> None:
        times = torch.linspace(0, 1, len(schedule), dtype=torch.float64)
        apart = (self._log_alpha(times).exp() - torch.tensor(schedule.alphas_cumprod)).abs().max()
        if apart > NEAR:
            raise InputError(
                "ContinuousLevels have other noise levels than the schedule that this network is"
                f" used on (by up to {float(apart):.2f}): take a linear schedule with beta_start"
                f" {self.beta_min}/T and beta_end {self.beta_max}/T"
            )

    def draw(self, schedule: Schedule, noise: BatchNoise, like: Tensor) -> Level:
        drawn = noise.uniform(Purpose.TIMESTEP, like.new_empty(len(like), dtype=torch.float64))
        t = self.t_min + (1 - self.t_min) * drawn
        return _level(self._log_alpha(t), t * (len(schedule) - 1), like)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) * t**2 / 2 - self.beta_min * t


@dataclass(frozen=True, kw_only=True)
class LogNormalLevels(Levels):
    """EDM's: ln(sigma) is normal, sigma = spread / signal (Karras et al. 2022, table 1).

    The network is told the level of `prediction_type: edm`, which takes it from signal and spread.

    Args:
        mean: of ln(sigma).
        std: of ln(sigma).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise FieldError(self, "mean", f"must be finite, got {self.mean}")
        check_positive(self, "std")

    def check(self, schedule: Schedule, prediction_type: str) -> None:
        if prediction_type != "edm":
            raise InputError(
                "LogNormalLevels belong to EDM's preconditioning, and this network predicts"
                f" {prediction_type}: take DiscreteLevels"
            )

    def draw(self, schedule: Schedule, noise: BatchNoise, like: Tensor) -> Level:
        drawn = noise.normal(Purpose.TIMESTEP, like.new_empty(len(like), dtype=torch.float64))
        sigma = (self.mean + self.std * drawn).exp()
        return _level(-(1 + sigma**2).log(), sigma, like)


def _level(log_alpha: Tensor, time: Tensor, like: Tensor) -> Level:
    """The level of ln(signal^2) (B,), in float64: near the clean image 1 - signal^2 is small."""
    shape = (-1, *[1] * (like.dim() - 1))
    signal, spread = (log_alpha / 2).exp(), (-torch.expm1(log_alpha)).sqrt()
    return Level(
        signal.to(like.dtype).reshape(shape), spread.to(like.dtype).reshape(shape), time.to(like)
    )
