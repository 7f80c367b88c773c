"""Gradual purification against the published loop, and its published plan."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, InputError
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import GradualPurifier, UniformPurifier
from hetpure.purifiers.purifier import Output
from hetpure.samplers import DDIM
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import states

SCHEDULE = linear_schedule()
GROWING = GradualPurifier(steps=50, strengths=(0.04, 0.04, 0.1))
Rows = Callable[..., BatchNoise]


def test_defaults_are_the_published_ones() -> None:
    """Lee & Kim's script for CIFAR-10: every index of 30, 30, 30, 30, 50, 50, 125, 125."""
    plan = GradualPurifier().plan(SCHEDULE)
    lengths = (30, 30, 30, 30, 50, 50, 125, 125)
    assert [step.via for step in plan] == [t for n in lengths for t in range(n, 0, -1)]
    assert sum(step.network_calls for step in plan) == 470
    assert GradualPurifier().sampler == DDIM(eta=1.0, clip_x0=False)


def test_its_law_is_that_of_the_published_loop(
    denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    """Each round: q of the last result, then x_s = sqrt(a_s) x0 + c_1 z + c_2 e down to a_s = 1."""
    noise = rows(0, 1, 2, 3)
    level = SCHEDULE.alpha_cumprod
    x = 2 * images - 1
    for number, start in enumerate((40, 40, 100)):
        purpose, at = (Purpose.RESAMPLE, 0) if number else (Purpose.FORWARD, start)
        z = noise.normal(purpose, x, step=at, repeat=number)
        x = level(start) ** 0.5 * x + (1 - level(start)) ** 0.5 * z
        grid = list(range(start, 0, -20))
        for t, s in zip(grid, [*grid[1:], NO_NOISE], strict=True):
            a, b = level(t), level(s)
            e = denoiser.network(x, torch.full((len(x),), t)).sample
            x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
            c_1 = ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
            z = noise.normal(Purpose.REVERSE, x, step=max(s, 0), repeat=number)
            x = b**0.5 * x0 + c_1 * z + (1 - b - c_1**2) ** 0.5 * e
    found = states(GROWING, denoiser, images, None, noise)
    assert len(found) == 1 + 2 + 2 + 5
    torch.testing.assert_close(found[-1], x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("output", ["x0", "state"])
def test_one_round_is_the_uniform_purifier(
    output: Output, denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    noise = rows(0, 1, 2, 3)
    single = replace(GROWING, strengths=(0.1,), output=output)
    uniform = UniformPurifier(50, DDIM(eta=1.0), strength=0.1, output=output)
    assert single.plan(SCHEDULE) == uniform.plan(SCHEDULE)
    found, expected = (states(p, denoiser, images, None, noise) for p in (single, uniform))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("output", "last"), [("x0", NO_NOISE), ("state", 0)])
def test_a_round_starts_where_the_one_before_it_ended(output: Output, last: int) -> None:
    plan = replace(GROWING, output=output).plan(SCHEDULE)
    steps = [(step.at, step.via, step.to, step.repeat) for step in plan]
    assert steps[:4] == [
        (40, 40, 20, 0),
        (20, 20, last, 0),
        (last, 40, 20, 1),
        (20, 20, last, 1),
    ]
    assert steps[4] == (last, 100, 80, 2)


@pytest.mark.parametrize("strengths", [(), (0.1, 0.0), (0.1, 1.5), (float("nan"),)])
def test_strengths_that_are_none_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(FieldError, match=r"strengths must be one or more numbers in \(0, 1\]"):
        GradualPurifier(strengths=strengths)


def test_rounds_beyond_the_address_and_below_the_schedule_are_refused() -> None:
    with pytest.raises(FieldError, match="strengths must be 65536 or fewer, got 65537"):
        GradualPurifier(strengths=(0.1,) * (2**16 + 1))
    with pytest.raises(InputError, match="0.0001 is below the first of 1000 indices"):
        GradualPurifier(strengths=(0.1, 1e-4)).plan(SCHEDULE)
