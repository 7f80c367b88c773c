"""Purification under the optimal denoiser of Gaussian data, where every answer is known.

For x0 ~ N(mu, s^2) and x_t = sqrt(a) x0 + sqrt(1 - a) n, the best prediction of n is
sqrt(1 - a) (x_t - sqrt(a) mu) / v with v = a s^2 + 1 - a. Ancestral sampling then ends in a draw of
the posterior of x0 given x_t, and DDIM follows x_t to mu + s (x_t - sqrt(a) mu) / sqrt(v).
"""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.gradients import run_plan
from hetpure.noise import Purpose, RowNoise
from hetpure.purifiers import HeterogeneousPurifier, Purifier, Resampling, Step, UniformPurifier
from hetpure.samplers import DDIM, DDPM, Sampler, add_noise
from hetpure.schedule import linear_schedule

MU, S, INDEX = -0.1, 0.25, 60  # mean and standard deviation in model units
SCHEDULE = linear_schedule()
ALPHA = SCHEDULE.alpha_cumprod(INDEX)
V = ALPHA * S**2 + 1 - ALPHA
Rows = Callable[..., RowNoise]


class Optimal(nn.Module):
    """The best noise prediction for data N(MU, S^2), pixel by pixel."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        alpha = SCHEDULE.alphas_at(timesteps, x)
        spread = alpha * S**2 + 1 - alpha
        return (1 - alpha).sqrt() * (x - alpha.sqrt() * MU) / spread


DENOISER = Denoiser(Optimal(), SCHEDULE)


def purify(purifier: Purifier, images: Tensor, mask: Tensor | None, noise: RowNoise) -> Tensor:
    """The last state in model units, before the clamp of `finish` cuts the tails."""

    def advance(step: Step, state: Tensor) -> Tensor:
        return purifier.advance(DENOISER, step, state, images, mask, noise)

    start = purifier.start(DENOISER, images, noise)
    return run_plan(purifier.plan(SCHEDULE), advance, start, "tape")


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("pixel", [0.3, 0.45, 0.7])
def test_ddpm_draws_from_the_posterior(variance: str, pixel: float, rows: Rows) -> None:
    """One image value, 16,384 draws: mean and variance of the output, each within 2% of a
    standard deviation or variance and four standard errors. The 2% is for steps of finite size;
    in the limit of small ones both variances are right."""
    images = torch.full((256, 1, 8, 8), pixel, dtype=torch.float64)
    sampler = DDPM(variance=variance, clip_x0=False)  # type: ignore[arg-type]
    purifier = UniformPurifier(steps=1000, sampler=sampler, strength=INDEX / 1000)
    pure = purify(purifier, images, None, rows(*range(256)))

    gain = ALPHA**0.5 * S**2 / V  # of the posterior mean in x_t
    mean = MU + gain * ALPHA**0.5 * (2 * pixel - 1 - MU)
    variance_known = gain**2 * (1 - ALPHA) + S**2 * (1 - ALPHA) / V
    n = pure.numel()
    assert abs(pure.mean() - mean) < (0.02 + 4 / n**0.5) * variance_known**0.5
    assert abs(pure.var() / variance_known - 1) < 0.02 + 4 * (2 / n) ** 0.5


def test_ddim_converges_to_the_known_map_at_first_order(images: Tensor, rows: Rows) -> None:
    """Half the step, half the error; below 0.007 in model units at full steps."""
    noise = rows(0, 1, 2, 3)
    draw = noise.normal(Purpose.FORWARD, images, step=INDEX)
    noisy = add_noise(to_model(images), ALPHA, draw)
    known = MU + S * (noisy - ALPHA**0.5 * MU) / V**0.5
    errors = []
    for steps in (250, 500, 1000):
        purifier = UniformPurifier(steps=steps, strength=INDEX / 1000)
        errors.append(float((purify(purifier, images, None, noise) - known).abs().max()))
    assert errors[-1] < 7e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.1)


@pytest.mark.parametrize("resampling", get_args(Resampling))
@pytest.mark.parametrize(
    "sampler", [DDIM(), DDPM(variance="fixed_small", clip_x0=False)], ids=["ddim", "ddpm"]
)
def test_data_stay_data_in_both_regions(
    sampler: Sampler, resampling: Resampling, rows: Rows
) -> None:
    """Images of the data distribution come out with its mean and variance, attended or not,
    whatever the resampling: it must not add or lose noise. Within 3% and four standard errors."""
    generator = torch.Generator().manual_seed(0)
    data = MU + S * torch.randn(128, 1, 16, 8, generator=generator, dtype=torch.float64)
    mask = torch.zeros_like(data)
    mask[..., :4] = 1
    purifier = HeterogeneousPurifier(
        steps=500, sampler=sampler, resampling=resampling, resample_jump=5
    )
    pure = purify(purifier, to_pixels(data), mask, rows(*range(128)))
    for pixels in (pure[..., :4], pure[..., 4:]):
        n = pixels.numel()
        assert abs(pixels.mean() - MU) < (0.03 + 4 / n**0.5) * S
        assert abs(pixels.var() / S**2 - 1) < 0.03 + 4 * (2 / n) ** 0.5
