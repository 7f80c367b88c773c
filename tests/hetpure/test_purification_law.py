"""Purification under the optimal denoiser of Gaussian data, where every answer is known.

For x0 ~ N(mu, s^2) ancestral sampling ends in a draw of the posterior of x0 given x_t, as does the
reverse SDE; DDIM and the flow ODE follow x_t to mu + s (x_t - sqrt(a) mu) / sqrt(v), v as in
`Optimal`. The states are in model units, before the clamp of `finish` cuts the tails.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import (
    EDMPurifier,
    HeterogeneousPurifier,
    Resampling,
    UniformPurifier,
)
from hetpure.samplers import DDIM, DDPM, VPODE, VPSDE, Sampler, add_noise
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import Optimal, states

MU, S, INDEX = -0.1, Optimal.S, 60  # mean and standard deviation in model units
SCHEDULE = linear_schedule()
ALPHA = SCHEDULE.alpha_cumprod(INDEX)
V = ALPHA * S**2 + 1 - ALPHA
Rows = Callable[..., BatchNoise]


DENOISER = Denoiser(Optimal(SCHEDULE, MU), SCHEDULE)


def refined(factor: int) -> Denoiser:
    """Under the linear schedule with `factor` times as many, smaller steps."""
    schedule = linear_schedule(1000 * factor, 1e-4 / factor, 2e-2 / factor)
    return Denoiser(Optimal(schedule, MU), schedule)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(variance="fixed_small", clip_x0=False),
        DDPM(variance="fixed_large", clip_x0=False),
        VPSDE(),
    ],
    ids=["ddpm small", "ddpm large", "vp-sde"],
)
@pytest.mark.parametrize("pixel", [0.3, 0.45, 0.7])
def test_stochastic_samplers_draw_from_the_posterior(
    sampler: Sampler, pixel: float, rows: Rows
) -> None:
    """One image value, 16,384 draws: mean and variance of the output, each within 2% of a
    standard deviation or variance and four standard errors. The 2% is for steps of finite size;
    in the limit of small ones both variances are right."""
    images = torch.full((256, 1, 8, 8), pixel, dtype=torch.float64)
    purifier = UniformPurifier(steps=1000, sampler=sampler, strength=INDEX / 1000)
    pure = states(purifier, DENOISER, images, None, rows(*range(256)))[-1]

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
        errors.append(
            float((states(purifier, DENOISER, images, None, noise)[-1] - known).abs().max())
        )
    assert errors[-1] < 7e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.1)


def flow_then_prediction(noisy: Tensor, denoiser: Denoiser, start: int, lowest: int) -> Tensor:
    """The flow's map from index to index, then the prediction of the clean image."""
    high, low = denoiser.schedule.sigma(start), denoiser.schedule.sigma(lowest)
    signal = denoiser.schedule.alpha_cumprod(start) ** 0.5
    at_lowest = MU + ((S**2 + low**2) / (S**2 + high**2)) ** 0.5 * (noisy / signal - MU)
    return MU + S**2 / (S**2 + low**2) * (at_lowest - MU)


def test_the_flow_ode_converges_to_the_known_map_at_first_order(images: Tensor, rows: Rows) -> None:
    """Up to the last network call, whose prediction is exact here."""
    noise, errors = rows(0, 1, 2, 3), []
    purifier = UniformPurifier(stride=1, sampler=VPODE(), strength=INDEX / 1000)
    for factor in (1, 2, 4):
        denoiser = refined(factor)
        noisy = purifier.start(denoiser, images, noise)
        known = flow_then_prediction(noisy, denoiser, INDEX * factor, 1)
        errors.append(
            float((states(purifier, denoiser, images, None, noise)[-1] - known).abs().max())
        )
    assert errors[0] < 2e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.1)


def test_heun_converges_to_the_known_map_at_second_order(images: Tensor, rows: Rows) -> None:
    """Half the step, a quarter of the error. Levels are snapped to indices, so the schedule has
    64,000 of them: a snapped step is then within a few percent of the one asked for."""
    denoiser, noise = refined(64), rows(0, 1, 2, 3)
    errors = []
    for steps in (16, 32, 64):
        purifier = EDMPurifier(levels=steps, strength=0.2, sigma_min=0.02)
        plan = purifier.plan(denoiser.schedule)
        noisy = purifier.start(denoiser, images, noise)
        known = flow_then_prediction(noisy, denoiser, plan[0].at, plan[-1].at)
        errors.append(
            float((states(purifier, denoiser, images, None, noise)[-1] - known).abs().max())
        )
    assert errors[-1] < 1e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)


@pytest.mark.parametrize("churn", [0.0, 5.0, 40.0])
def test_edm_keeps_the_data_distribution(churn: float, rows: Rows) -> None:
    """Fresh noise on the way must be exactly what the climb to the noisier level needs. Within
    2% and four standard errors; S_noise of 1.3 is seen by this tolerance."""
    generator = torch.Generator().manual_seed(0)
    data = MU + S * torch.randn(128, 1, 16, 16, generator=generator, dtype=torch.float64)
    purifier = EDMPurifier(levels=40, strength=0.3, sigma_min=0.02, churn=churn)

    def moments(edm: EDMPurifier) -> tuple[float, float]:
        pure = states(edm, DENOISER, to_pixels(data), None, rows(*range(128)))[-1]
        return float(pure.mean() - MU) / S, float(pure.var()) / S**2 - 1

    n = data.numel()
    mean, variance = moments(purifier)
    assert abs(mean) < 0.02 + 4 / n**0.5
    assert abs(variance) < 0.02 + 4 * (2 / n) ** 0.5
    inflated = moments(replace(purifier, churn_noise=1.3))[1]
    assert (inflated > 0.02 + 4 * (2 / n) ** 0.5) == (churn > 0)


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
        steps=500, sampler=sampler, resampling=resampling, resample_jump=2
    )
    pure = states(purifier, DENOISER, to_pixels(data), mask, rows(*range(128)))[-1]
    for pixels in (pure[..., :4], pure[..., 4:]):
        n = pixels.numel()
        assert abs(pixels.mean() - MU) < (0.03 + 4 / n**0.5) * S
        assert abs(pixels.var() / S**2 - 1) < 0.03 + 4 * (2 / n) ** 0.5
