"""Networks and a schedule that several test files build, noise as a training draws it, and a
purifier's states."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from hetpure.denoiser import Denoiser
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.purifiers import Purifier, Step
from hetpure.schedule import Schedule


def tiny_unet(**changes: Any) -> UNet2DModel:
    """For 8x8 images, smooth, of the generator's next weights."""
    return UNet2DModel(
        **changes,
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    ).eval()


def seeded_unet(seed: int = 0) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny_unet()


def cosine_schedule(timesteps: int = 1000) -> Schedule:
    """Of Nichol & Dhariwal 2021, as diffusers computes it."""
    theirs = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule="squaredcos_cap_v2")
    return Schedule(tuple(theirs.alphas_cumprod.double().tolist()))


def rows(count: int, seed: int = 0, index: int = 0) -> BatchNoise:
    return Noise.of(seed, Stream.TRAIN, index).on(torch.arange(count))


class Optimal(nn.Module):
    """The best noise prediction where every pixel is mean +- centre, give or take S. With centre 0
    the data are Gaussian and a purification is linear; else nothing is, and all is smooth.

    For x0 ~ N(mean, S^2) and x = sqrt(a) x0 + sqrt(1 - a) n the best prediction of n is
    sqrt(1 - a) (x - sqrt(a) mean) / v with v = a S^2 + 1 - a.
    """

    S = 0.25

    def __init__(self, schedule: Schedule, mean: float = 0.0, centre: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.mean, self.centre = schedule, mean, centre

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        level = self.schedule.level(timesteps, x)
        variance = level.signal**2 * self.S**2 + level.spread**2
        middle, away = level.signal * self.centre, x - level.signal * self.mean
        return level.spread * (away - middle * torch.tanh(middle * away / variance)) / variance


def states(
    purifier: Purifier,
    denoiser: Denoiser,
    images: Tensor,
    mask: Tensor | None,
    noise: BatchNoise,
    plan: Sequence[Step] | None = None,
) -> list[Tensor]:
    """The state after the start and after every step, in model units: no clamp hides anything."""
    found = [purifier.start(denoiser, images, noise)]
    for step in purifier.plan(denoiser.schedule) if plan is None else plan:
        found.append(purifier.advance(denoiser, step, found[-1], images, mask, noise))
    return found
