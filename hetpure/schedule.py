"""Variance-preserving noise schedules: how much signal is left at each diffusion index."""

import bisect
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from hetpure.errors import InputError

Pairing = Literal["network", "diffpure"]
NO_NOISE = -1  # the index before the first: the image itself, without noise


@dataclass(frozen=True)
class Level:
    """Where in the diffusion each image of a batch is: x = signal x0 + spread noise, with
    signal^2 + spread^2 = 1, both (B, 1, 1, 1); `time` (B,) is what the network is given."""

    signal: Tensor
    spread: Tensor
    time: Tensor

    @property
    def snr_root(self) -> Tensor:
        """gamma = signal / spread, the root of the signal-to-noise ratio."""
        return self.signal / self.spread

    def diffuse(self, x0: Tensor, noise: Tensor) -> Tensor:
        """q(x0, level, noise), all (B, C, H, W) in model units."""
        return self.signal * x0 + self.spread * noise

    def take(self, index: Tensor) -> "Level":
        """The level of some images, by their positions (R,), int64."""
        return Level(self.signal[index], self.spread[index], self.time[index])


@cache
def _on(device: torch.device, numbers: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """The numbers on a device, copied there once. Not as an inference tensor: a training would use
    it next."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


@dataclass(frozen=True)
class Schedule:
    """`alphas_cumprod[t]` is the signal's share of the variance at index t = 0..T-1, where
    q(x_t | x_0) = N(sqrt(alphas_cumprod[t]) x_0, 1 - alphas_cumprod[t]) (DDPM, eq. 4).

    `times[t]` is the time that the network is given there; by default the index itself. `pairing`
    says in words how time and level belong together, where published code has more than one way.
    """

    alphas_cumprod: tuple[float, ...]
    times: tuple[float, ...] | None = None
    pairing: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_cumprod(self, timestep: int) -> float:
        """Signal variance at one index; `NO_NOISE` gives 1."""
        if not NO_NOISE <= timestep < len(self):
            raise ValueError(f"timestep must be in [{NO_NOISE}, {len(self) - 1}], got {timestep}")
        return 1.0 if timestep == NO_NOISE else self.alphas_cumprod[timestep]

    def time(self, timestep: int) -> float:
        """The time that the network is given at one index."""
        return timestep if self.times is None else self.times[timestep]

    def level(self, timesteps: Tensor, like: Tensor) -> Level:
        """(B,) indices to the level of each image, in the dtype of `like` (B, ...); its times are
        float32, or the indices. On an accelerator nothing here waits for it: there a wrong index
        ends the program later, by a failed assertion."""
        within = ((timesteps >= 0) & (timesteps < len(self))).all()
        if not within.is_cpu:
            torch._assert_async(within)
        elif not within:
            span = f"{int(timesteps.min())} to {int(timesteps.max())}"
            raise InputError(f"timesteps {span} are not in the schedule's 0 to {len(self) - 1}")
        table = _on(like.device, self.alphas_cumprod, torch.float64)
        alpha = table[timesteps].reshape(-1, *[1] * (like.dim() - 1))
        times = timesteps
        if self.times is not None:
            times = _on(like.device, self.times, torch.float32)[timesteps]
        return Level(alpha.sqrt().to(like.dtype), (1 - alpha).sqrt().to(like.dtype), times)

    def sigma(self, timestep: int) -> float:
        """Noise over signal, sqrt((1 - abar) / abar): the noise level in EDM's units."""
        alpha = self.alpha_cumprod(timestep)
        return math.sqrt((1 - alpha) / alpha)

    def nearest(self, sigma: float) -> int:
        """The index whose noise level is nearest to sigma."""
        above = bisect.bisect_left(range(len(self)), sigma, key=self.sigma)
        candidates = range(max(above - 1, 0), min(above, len(self) - 1) + 1)
        return min(candidates, key=lambda timestep: abs(self.sigma(timestep) - sigma))

    def index(self, strength: float) -> int:
        """A strength, as a fraction of T, to its index: 0.1 is index 100 of 1000."""
        return min(round(strength * len(self)), len(self) - 1)


def linear_schedule(
    timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> Schedule:
    """Linear betas (DDPM, section 4). The table is computed in float32, as diffusers does, so that
    weights trained here and there see the same noise levels bit for bit."""
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float32)
    return Schedule(tuple((1 - betas).cumprod(0).double().tolist()))


def vp_schedule(
    timesteps: int = 1000,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    pairing: Pairing = "network",
) -> Schedule:
    """The VP-SDE at T times: abar(t) = exp(-(beta_max - beta_min) t^2 / 2 - beta_min t) (Song et
    al. 2021, eq. 33). Its networks are given (T - 1) t, and index n is the time

    - `network`: n / (T - 1), where they are given the index, as in their training; the first is
      1e-5, the earliest time of the training;
    - `diffpure`: (n + 1) / T, as in DiffPure's code (Nie et al. 2022).
    """
    first = 1 if pairing == "diffpure" else 0
    last = timesteps if pairing == "diffpure" else timesteps - 1
    times = [max((n + first) / last, 1e-5) for n in range(timesteps)]
    return Schedule(
        tuple(math.exp(-(beta_max - beta_min) * t**2 / 2 - beta_min * t) for t in times),
        tuple((timesteps - 1) * t for t in times),
    )
