"""Steps of the reverse VP-SDE and its flow ODE, against the formulas and against other samplers.

Their law over many steps is in `test_purification_law.py`.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.noise import BatchNoise
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import (
    VPODE,
    VPSDE,
    add_noise,
    vp_ode_step,
    vp_sde_step,
)
from hetpure.schedule import linear_schedule

SCHEDULE = linear_schedule()
PAIRS = [(999, 979), (200, 198), (200, 100), (1, 0)]
Rows = Callable[..., BatchNoise]


def normals(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def slope_of_the_sum(t: int, s: int) -> float:
    """log(abar_s / abar_t) as the sum of single steps: the integral of beta over the step."""
    level = SCHEDULE.alphas_cumprod
    return -sum(math.log1p(level[k] / level[k - 1] - 1) for k in range(s + 1, t + 1))


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_steps_are_those_of_song_et_al(t: int, s: int) -> None:
    """dx = [-x/2 - score] beta dt + sqrt(beta) dw backwards in time, and half the score without
    noise; the score is taken from the predicted noise here, and the code takes it from x0."""
    length = slope_of_the_sum(t, s)
    a_t, a_s = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[s]
    x0, predicted, fresh = normals(3)
    x = add_noise(x0, a_t, predicted)
    score = -predicted / math.sqrt(1 - a_t)
    sde = x - length * (-x / 2 - score) + math.sqrt(length) * fresh
    ode = x - length * (-x / 2 - score / 2)
    torch.testing.assert_close(vp_sde_step(x, x0, a_t, a_s, fresh), sde, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vp_ode_step(x, x0, a_t, a_s), ode, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        VPSDE().step(x, x0, predicted, a_t, a_s, fresh), vp_sde_step(x, x0, a_t, a_s, fresh)
    )
    assert torch.equal(
        VPODE().step(x, x0, predicted, a_t, a_s, fresh), vp_ode_step(x, x0, a_t, a_s)
    )


@pytest.mark.parametrize("sampler", [VPSDE(), VPODE()], ids=repr)
def test_a_step_of_no_length_changes_nothing(sampler: VPSDE | VPODE) -> None:
    x, x0, predicted, fresh = normals(4)
    assert torch.equal(sampler.step(x, x0, predicted, 0.7, 0.7, fresh), x)


@pytest.mark.parametrize("kind", [VPSDE, VPODE])
def test_clipping_clips_the_prediction_and_is_off_by_default(
    kind: type[VPSDE] | type[VPODE], denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    noise = rows(0, 1, 2, 3)
    plain, clipped = (
        UniformPurifier(steps=20, sampler=kind(clip_x0=clip), strength=0.2)
        for clip in (False, True)
    )
    assert plain == UniformPurifier(steps=20, sampler=kind(), strength=0.2)
    step = plain.plan(SCHEDULE)[0]
    state = 2 * plain.start(denoiser, images, noise)
    x0, _ = denoiser.predict(state, step.via)
    assert x0.abs().max() > 1
    levels = SCHEDULE.alpha_cumprod(step.via), SCHEDULE.alpha_cumprod(step.to)
    after = [p.advance(denoiser, step, state, images, None, noise) for p in (plain, clipped)]
    # the score is the only term with x0: its part of the drift moves by what the clamp removed
    share = 1.0 if kind is VPSDE else 0.5
    moved = share * math.log(levels[1] / levels[0]) * levels[0] ** 0.5 / (1 - levels[0])
    torch.testing.assert_close(
        after[1] - after[0], moved * (x0.clamp(-1, 1) - x0), rtol=1e-9, atol=1e-9
    )
