"""Plans, network calls, addresses and degenerate cases of the purifiers.

What a purification does to a distribution is in `test_purification_law.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser, to_model
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import (
    HeterogeneousPurifier,
    Resampling,
    UniformPurifier,
    heterogeneous_state,
)
from hetpure.samplers import DDIM, DDPM, Sampler, add_noise
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import states

SCHEDULE = linear_schedule()
RESAMPLING: tuple[Resampling, ...] = get_args(Resampling)
Rows = Callable[..., BatchNoise]
SAMPLERS: dict[str, Sampler] = {"ddim": DDIM(), "ddpm": DDPM(), "eta": DDIM(eta=0.5)}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_resampling = pytest.mark.parametrize("resampling", RESAMPLING)


def test_published_grid() -> None:
    purifier = UniformPurifier(steps=500, output="state")
    assert purifier.grid(SCHEDULE, 200) == list(range(200, -1, -2))
    assert purifier.grid(SCHEDULE, 200, include=117) == [
        *range(200, 117, -2),
        117,
        *range(116, -1, -2),
    ]
    assert replace(purifier, output="x0").grid(SCHEDULE, 200) == [*range(200, 0, -2), NO_NOISE]


@pytest.mark.parametrize(
    ("resampling", "jump", "calls"),
    [("none", 10, 100), ("fused", 3, 100), ("single_step", 10, 150), ("multi_step", 20, 1100)],
)
def test_calls_of_the_reference_settings(resampling: Resampling, jump: int, calls: int) -> None:
    """CIFAR-10, t_l .2 and t_s .1: single-step saves 86% of the calls of RePaint's U = 20."""
    purifier = HeterogeneousPurifier(steps=500, resampling=resampling, resample_jump=jump)
    plan = purifier.plan(SCHEDULE)
    assert len(plan) == calls
    assert (plan[0].at, plan[-1].to) == (200, NO_NOISE)
    assert {step.to for step in plan if step.known} == set(range(198, 99, -2))


def test_outputs_are_the_last_prediction_or_the_state_at_index_0(
    denoiser: Denoiser, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    noise = rows(0, 1, 2, 3)
    purifier = HeterogeneousPurifier(steps=20, output="state")
    *_, before, state = states(purifier, denoiser, images, half_mask, noise)
    x0, predicted_noise = denoiser.predict(before, 50)
    assert torch.equal(
        states(replace(purifier, output="x0"), denoiser, images, half_mask, noise)[-1], x0
    )
    assert torch.equal(state, add_noise(x0, SCHEDULE.alpha_cumprod(0), predicted_noise))


def test_stage_boundary_off_the_stride_is_inserted() -> None:
    """Below it, a uniform purifier of that strength takes the very same steps."""
    plan = HeterogeneousPurifier(steps=50, t_small=0.117, resampling="none").plan(SCHEDULE)
    uniform = UniformPurifier(steps=50, strength=0.117).plan(SCHEDULE)
    assert [step.at for step in plan] == [200, 180, 160, 140, 120, 117, 100, 80, 60, 40, 20]
    assert [step.to for step in plan if step.known] == [180, 160, 140, 120, 117]
    assert plan[5:] == uniform


def test_resampling_jumps_stop_at_the_last_index() -> None:
    for resampling in RESAMPLING:
        purifier = HeterogeneousPurifier(
            steps=10, t_large=1.0, t_small=0.5, resampling=resampling, resample_jump=300
        )
        plan = purifier.plan(SCHEDULE)
        assert plan[0].at == 999
        assert max(step.via for step in plan) == 999
        jumps = [step for step in plan if step.via > step.at]
        assert (
            len(jumps) == {"none": 0, "single_step": 5, "fused": 5, "multi_step": 1500}[resampling]
        )


@every_sampler
@every_resampling
def test_equal_levels_are_the_uniform_purifier(
    sampler: Sampler,
    resampling: Resampling,
    denoiser: Denoiser,
    images: Tensor,
    half_mask: Tensor,
    rows: Rows,
) -> None:
    noise = rows(0, 1, 2, 3)
    one_level = HeterogeneousPurifier(
        20, sampler, t_large=0.12, t_small=0.12, resampling=resampling
    )
    uniform = UniformPurifier(20, sampler, strength=0.12)
    expected = states(uniform, denoiser, images, None, noise)[-1]
    assert torch.equal(states(one_level, denoiser, images, half_mask, noise)[-1], expected)


@every_sampler
@pytest.mark.parametrize("small", [0.1, 0.117], ids=["on the stride", "off the stride"])
@pytest.mark.parametrize(("attended", "strength"), [(0.0, None), (1.0, 0.2)], ids=["none", "all"])
def test_degenerate_masks_are_uniform_purifiers(
    attended: float,
    strength: float | None,
    small: float,
    sampler: Sampler,
    denoiser: Denoiser,
    images: Tensor,
    rows: Rows,
) -> None:
    """All zeros: at t_small. All ones: at t_large, on the grid that holds t_small."""
    noise = rows(0, 1, 2, 3)
    purifier = HeterogeneousPurifier(20, sampler, t_small=small, resampling="none")
    uniform = UniformPurifier(20, sampler, strength=strength or small, through=small)
    expected = states(uniform, denoiser, images, None, noise)[-1]
    mask = torch.full_like(images, attended)
    assert torch.equal(states(purifier, denoiser, images, mask, noise)[-1], expected)


@every_sampler
@every_resampling
def test_unattended_pixels_have_the_noise_of_t_small_when_stage_1_ends(
    sampler: Sampler,
    resampling: Resampling,
    denoiser: Denoiser,
    images: Tensor,
    half_mask: Tensor,
    rows: Rows,
) -> None:
    """Exactly q(x, t_s) with the forward noise of index t_s, before the last resampling jump."""
    noise = rows(0, 1, 2, 3)
    purifier = HeterogeneousPurifier(20, sampler, resampling=resampling, resample_jump=2)
    plan = purifier.plan(SCHEDULE)
    end = max(i for i, step in enumerate(plan) if step.known)
    assert plan[end].to == 100
    state = states(purifier, denoiser, images, half_mask, noise, plan[: end + 1])[-1]
    draw = noise.normal(Purpose.FORWARD, images, step=100, repeat=plan[end].repeat)
    known = add_noise(to_model(images), SCHEDULE.alpha_cumprod(100), draw)
    assert torch.equal(state[..., 4:], known[..., 4:])
    assert not torch.isclose(state[..., :4], known[..., :4]).any()


@every_sampler
def test_recombining_gives_unattended_pixels_fresh_noise_of_the_same_level(
    sampler: Sampler, denoiser: Denoiser, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    """After every stage-1 point: exactly q(x, s) with the forward noise of repeat 1. What is
    attended, before anything leaks in, is what single-step resampling makes it."""
    noise = rows(0, 1, 2, 3)
    plain = HeterogeneousPurifier(20, sampler, resample_jump=3)
    purifier = replace(plain, recombine=True)
    plan = purifier.plan(SCHEDULE)
    assert [replace(s, known=s.known and s.repeat == 0) for s in plan] == [*plain.plan(SCHEDULE)]
    found = states(purifier, denoiser, images, half_mask, noise)
    other = states(plain, denoiser, images, half_mask, noise)
    points = [i for i, step in enumerate(plan) if step.repeat == 1]
    assert [plan[i].to for i in points] == [150, 100]
    for i in points:
        draw = noise.normal(Purpose.FORWARD, images, step=plan[i].to, repeat=1)
        known = add_noise(to_model(images), SCHEDULE.alpha_cumprod(plan[i].to), draw)
        assert torch.equal(found[i + 1][..., 4:], known[..., 4:])
        assert not torch.isclose(found[i][..., 4:], known[..., 4:]).all()  # not repeat 0's noise
    first = points[0] + 1
    assert torch.equal(found[first][..., :4], other[first][..., :4])
    assert not torch.isclose(found[first][..., 4:], other[first][..., 4:]).any()


def test_heterogeneous_state_has_two_noise_levels(denoiser: Denoiser, rows: Rows) -> None:
    """Mean and variance of q(x, t_l) and q(x, t_s), within five standard errors."""
    images = torch.full((64, 1, 8, 8), 0.7, dtype=torch.float64)
    mask = torch.zeros_like(images)
    mask[..., :4] = 1
    noise = rows(*range(64))
    state = heterogeneous_state(denoiser, images, mask, noise, large=200, small=100)
    for pixels, index in ((state[..., :4], 200), (state[..., 4:], 100)):
        alpha, n = SCHEDULE.alpha_cumprod(index), pixels.numel()
        assert abs(pixels.mean() - alpha**0.5 * 0.4) < 5 * ((1 - alpha) / n) ** 0.5
        assert abs(pixels.var() / (1 - alpha) - 1) < 5 * (2 / n) ** 0.5
