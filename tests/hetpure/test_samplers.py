"""Sampler steps against diffusers' schedulers, against the algebra of Gaussians, and by their law.

Everything is float64. diffusers keeps its table in float32, where 1 - alpha_t / alpha_s loses four
digits, so its schedulers get the same table in float64: the formulas are compared, not rounding.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from hetpure.denoiser import Denoiser, PredictionType
from hetpure.samplers import (
    DDIM,
    DDPM,
    VPODE,
    VPSDE,
    Sampler,
    add_noise,
    jump_forward,
)
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import cosine_schedule

LINEAR, COSINE = linear_schedule(), cosine_schedule()
SCHEDULES = {"linear": LINEAR, "squaredcos_cap_v2": COSINE}
SHAPE = (2, 3, 4, 4)
TRAJECTORIES: list[tuple[str, PredictionType, int]] = [
    ("linear", "epsilon", 50),
    ("linear", "sample", 20),
    ("squaredcos_cap_v2", "v_prediction", 50),
    ("linear", "epsilon", 250),
]


class Network(nn.Module):
    """A bounded nonlinear function of image, neighbouring pixels and time: nothing to learn, but
    every mistake in a step changes what it says in the next one. Its slope is small, or hundreds of
    steps would amplify the last bit to the tolerance."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        phase = timesteps.to(x.dtype).reshape(-1, 1, 1, 1) / 150
        return 1.5 * torch.tanh(0.4 * x - 0.2 * x.roll(1, -1) + torch.sin(phase))


def standard_normals(count: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def in_float64(scheduler: Any) -> Any:
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def trajectory(
    denoiser: Denoiser, sampler: Sampler, x: Tensor, grid: Sequence[int], noises: Sequence[Tensor]
) -> list[Tensor]:
    """All states of a reverse process on a descending grid of indices, as a purifier runs it."""
    level = denoiser.schedule.alpha_cumprod
    states = []
    for (t, s), noise in zip(pairwise(grid), noises, strict=False):
        x0, predicted_noise = denoiser.predict(x, t)
        x = sampler.step(x, sampler.clip(x0), predicted_noise, level(t), level(s), noise)
        states.append(x)
    return states


@pytest.mark.parametrize(("eta", "clip"), [(0.0, False), (0.5, True), (1.0, False)])
@pytest.mark.parametrize(("name", "prediction", "steps"), TRAJECTORIES)
def test_ddim_trajectory_is_that_of_diffusers(
    name: str, prediction: PredictionType, steps: int, eta: float, clip: bool
) -> None:
    """Every state, from the last index of the grid to the clean image, with the same noise."""
    scheduler = in_float64(
        DDIMScheduler(beta_schedule=name, prediction_type=prediction, clip_sample=clip)
    )
    scheduler.set_timesteps(steps)
    network, (x, *noises) = Network(), standard_normals(steps + 1)
    states = trajectory(
        Denoiser(network, SCHEDULES[name], prediction),
        DDIM(eta=eta, clip_x0=clip),
        x,
        [*scheduler.timesteps.tolist(), NO_NOISE],
        noises,
    )
    for t, noise, state in zip(scheduler.timesteps, noises, states, strict=True):
        output = network(x, t.expand(len(x)))
        x = scheduler.step(output, int(t), x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(state, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("variance", "clip"), [("fixed_large", True), ("fixed_small", False)])
@pytest.mark.parametrize(("name", "prediction", "steps"), TRAJECTORIES)
def test_ddpm_trajectory_is_that_of_diffusers(
    name: str, prediction: PredictionType, steps: int, variance: Any, clip: bool
) -> None:
    """diffusers draws from a generator; one of the same seed gives us the same numbers. It draws
    nothing at index 0, where our step gets noise and must not use it."""
    scheduler = in_float64(
        DDPMScheduler(
            beta_schedule=name,
            prediction_type=prediction,
            variance_type=variance,
            clip_sample=clip,
        )
    )
    scheduler.set_timesteps(steps)
    network, (x, *noises) = Network(), standard_normals(steps + 1)
    states = trajectory(
        Denoiser(network, SCHEDULES[name], prediction),
        DDPM(variance=variance, clip_x0=clip),
        x,
        [*scheduler.timesteps.tolist(), NO_NOISE],
        noises,
    )
    generator = torch.Generator().manual_seed(3)
    torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # the initial state
    for t, state in zip(scheduler.timesteps, states, strict=True):
        output = network(x, t.expand(len(x)))
        x = scheduler.step(output, int(t), x, generator=generator).prev_sample
        torch.testing.assert_close(state, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [[999, 620, 100, 37, 0], [205, 200, 3, 0]], ids=str)
def test_ddpm_on_an_uneven_grid_is_that_of_diffusers(steps: list[int]) -> None:
    """HetPure inserts the stage boundary into the grid, so strides differ."""
    scheduler = in_float64(DDPMScheduler(variance_type="fixed_large"))
    scheduler.set_timesteps(timesteps=steps)
    network, (x, *noises) = Network(), standard_normals(len(steps) + 1)
    states = trajectory(Denoiser(network, LINEAR), DDPM(), x, [*steps, NO_NOISE], noises)
    generator = torch.Generator().manual_seed(3)
    torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps:
        output = network(x, t.expand(len(x)))
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    torch.testing.assert_close(states[-1], x, rtol=1e-10, atol=1e-10)


def test_add_noise_is_that_of_diffusers() -> None:
    x0, noise = standard_normals(2)
    timesteps = torch.tensor([3, 700])
    expected = in_float64(DDPMScheduler()).add_noise(x0, noise, timesteps)
    for row, t in enumerate(timesteps.tolist()):
        single = add_noise(x0[row], LINEAR.alpha_cumprod(t), noise[row])
        torch.testing.assert_close(single, expected[row], rtol=1e-12, atol=1e-12)
    assert torch.equal(add_noise(x0, 1.0, noise), x0)


ONE, ZERO = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()


@pytest.mark.parametrize(("t", "s"), [(NO_NOISE, 0), (0, 1), (0, 999), (100, 110), (200, 999)])
def test_a_jump_is_the_composition_of_single_steps(t: int, s: int) -> None:
    """A forward step is x -> m x + d n, so single steps compose to a mean factor prod(m) and a
    variance that follows v -> m^2 v + d^2. One jump must have both numbers."""
    mean, variance = 1.0, 0.0
    for k in range(t, s):
        low, high = LINEAR.alpha_cumprod(k), LINEAR.alpha_cumprod(k + 1)
        m, d = float(jump_forward(ONE, low, high, ZERO)), float(jump_forward(ZERO, low, high, ONE))
        assert m**2 + d**2 == pytest.approx(1, abs=1e-12)  # one step preserves unit variance
        assert d**2 == pytest.approx(1 - high / low, rel=1e-9)  # and adds beta of noise
        mean, variance = m * mean, m**2 * variance + d**2
    low, high = LINEAR.alpha_cumprod(t), LINEAR.alpha_cumprod(s)
    assert float(jump_forward(ONE, low, high, ZERO)) == pytest.approx(mean, rel=1e-9)
    assert float(jump_forward(ZERO, low, high, ONE)) ** 2 == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize(
    ("sampler", "stochastic"),
    [
        (DDIM(), False),
        (DDIM(eta=1e-3), True),
        (DDPM(), True),
        (DDPM(variance="fixed_small"), True),
        (VPSDE(), True),
        (VPODE(), False),
    ],
    ids=repr,
)
def test_stochastic_says_whether_noise_matters(sampler: Sampler, stochastic: bool) -> None:
    """Else its noise would be hidden from an attacker who knows the noise (DW-box)."""
    x0, predicted, first, second = standard_normals(4)
    a_t, a_s = LINEAR.alpha_cumprod(200), LINEAR.alpha_cumprod(180)
    x = add_noise(x0, a_t, predicted)
    steps = [sampler.step(x, x0, predicted, a_t, a_s, noise) for noise in (first, second)]
    assert sampler.stochastic == stochastic
    assert torch.equal(*steps) == (not stochastic)


def test_defaults_and_clipping_are_those_of_the_spec() -> None:
    """SPEC section 2: x0 clipping is off for DDIM and on for DDPM; fixed_large is the default."""
    wide = torch.tensor([-3.0, -0.5, 2.0])
    assert torch.equal(DDIM().clip(wide), wide)
    assert DDPM().clip(wide).tolist() == [-1.0, -0.5, 1.0]
    assert DDIM(clip_x0=True).clip(wide).tolist() == [-1.0, -0.5, 1.0]
    assert torch.equal(DDPM(clip_x0=False).clip(wide), wide)
    assert (DDIM().eta, DDPM().variance) == (0.0, "fixed_large")


VP_PAIRS = [(999, 979), (200, 198), (200, 100), (1, 0)]


def slope_of_the_sum(t: int, s: int) -> float:
    """log(abar_s / abar_t) as the sum of single steps: the integral of beta over the step."""
    level = LINEAR.alphas_cumprod
    return -sum(math.log1p(level[k] / level[k - 1] - 1) for k in range(s + 1, t + 1))


@pytest.mark.parametrize(("t", "s"), VP_PAIRS)
def test_steps_are_those_of_song_et_al(t: int, s: int) -> None:
    """dx = [-x/2 - score] beta dt + sqrt(beta) dw backwards in time, and half the score without
    noise; the score is taken from the predicted noise here, and the code takes it from x0."""
    length = slope_of_the_sum(t, s)
    a_t, a_s = LINEAR.alphas_cumprod[t], LINEAR.alphas_cumprod[s]
    x0, predicted, fresh = standard_normals(3)
    x = add_noise(x0, a_t, predicted)
    score = -predicted / math.sqrt(1 - a_t)
    sde = x - length * (-x / 2 - score) + math.sqrt(length) * fresh
    ode = x - length * (-x / 2 - score / 2)
    for sampler, expected in ((VPSDE(), sde), (VPODE(), ode)):
        stepped = sampler.step(x, x0, predicted, a_t, a_s, fresh)
        torch.testing.assert_close(stepped, expected, rtol=1e-9, atol=1e-9)
