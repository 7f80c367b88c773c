"""Variance-preserving noise schedules: how much signal is left at each diffusion index."""

import bisect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

CLEAN = -1  # the index before the first: no noise at all


@dataclass(frozen=True)
class Schedule:
    """`alphas_cumprod[t]` is the signal's share of the variance at index t = 0..T-1, where
    q(x_t | x_0) = N(sqrt(alphas_cumprod[t]) x_0, 1 - alphas_cumprod[t]) (DDPM, eq. 4)."""

    alphas_cumprod: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_cumprod(self, timestep: int) -> float:
        """Signal variance at one index; `CLEAN` gives 1."""
        if not CLEAN <= timestep < len(self):
            raise ValueError(f"timestep must be in [{CLEAN}, {len(self) - 1}], got {timestep}")
        return 1.0 if timestep == CLEAN else self.alphas_cumprod[timestep]

    def alphas_at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """(B,) indices to (B, 1, 1, 1) signal variances like `like`; `CLEAN` gives 1."""
        table = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64, device=like.device)
        return table[timesteps - CLEAN].to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

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
    return _from_betas(betas)


def cosine_schedule(timesteps: int = 1000, offset: float = 0.008) -> Schedule:
    """Squared-cosine schedule (Nichol & Dhariwal 2021, eq. 17), betas capped at .999."""

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps), 0.999)
        for i in range(timesteps)
    ]
    return _from_betas(torch.tensor(betas, dtype=torch.float32))


def _from_betas(betas: Tensor) -> Schedule:
    return Schedule(tuple((1 - betas).cumprod(0).double().tolist()))


def snr_root(alphas_cumprod: Tensor) -> Tensor:
    """gamma_t = sqrt(abar_t) / sqrt(1 - abar_t), the root of the signal-to-noise ratio."""
    return (alphas_cumprod / (1 - alphas_cumprod)).sqrt()
