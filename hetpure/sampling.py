"""Images out of pure noise: what a diffusion network has learnt, to look at and to count."""

from itertools import pairwise

from torch import Tensor

from hetpure.denoiser import Denoiser, to_pixels
from hetpure.noise import BatchNoise, Purpose
from hetpure.samplers import DDPM
from hetpure.schedule import NO_NOISE


def draw_images(
    denoiser: Denoiser, noise: BatchNoise, like: Tensor, *, network_calls: int
) -> Tensor:
    """Images in pixel [0, 1] with the shape (N, C, H, W) of `like`, one for each entry of the
    noise, by DDPM's steps on a grid of so many indices from the last to the first."""
    sampler = DDPM(variance="fixed_small")
    schedule = denoiser.schedule
    last, count = len(schedule) - 1, min(network_calls, len(schedule))
    grid = [round(last * (1 - k / max(count - 1, 1))) for k in range(count)]
    x = noise.normal(Purpose.FORWARD, like, step=last)
    for t, after in pairwise([*grid, NO_NOISE]):
        x0, predicted_noise = denoiser.predict(x, t)
        fresh = noise.normal(Purpose.REVERSE, like, step=t)
        alpha, alpha_next = schedule.alpha_cumprod(t), schedule.alpha_cumprod(after)
        x = sampler.step(x, sampler.clip(x0), predicted_noise, alpha, alpha_next, fresh)
    return to_pixels(x).clamp(0, 1)
