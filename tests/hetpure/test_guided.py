"""Guidance by hand and by autograd, and rounds that start where the one before ended."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser, to_model
from hetpure.errors import InputError
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import GuidedPurifier, UniformPurifier
from hetpure.purifiers.purifier import Output
from hetpure.samplers import DDPM, Variance, add_noise
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import states

SCHEDULE = linear_schedule()
GUIDED = GuidedPurifier(steps=50, strength=0.1, guidance=2.0, rounds=1)
Rows = Callable[..., BatchNoise]


@pytest.mark.parametrize("output", ["x0", "state"])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_without_guidance_one_round_is_the_uniform_purifier(
    variance: Variance, output: Output, denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    noise, sampler = rows(0, 1, 2, 3), DDPM(variance=variance)
    free = replace(GUIDED, guidance=0.0, sampler=sampler, output=output)
    uniform = UniformPurifier(steps=50, strength=0.1, sampler=sampler, output=output)
    assert free.plan(SCHEDULE) == uniform.plan(SCHEDULE)
    found, expected = (
        states(purifier, denoiser, images, None, noise) for purifier in (free, uniform)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    guided = states(replace(free, guidance=1.0), denoiser, images, None, noise)
    assert not torch.isclose(guided[-1], found[-1]).all()


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("number", [0, 2], ids="round {}".format)
def test_a_guided_step_by_hand(
    number: int, variance: Variance, denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    """The ancestral step minus s_t Sigma_t times the gradient that autograd finds for D."""
    sampler = DDPM(variance=variance, clip_x0=False)
    purifier = replace(GUIDED, sampler=sampler, rounds=3)
    step = next(s for s in purifier.plan(SCHEDULE) if (s.via, s.repeat) == (60, number))
    assert (step.at, step.to) == (60, 40)
    a_t, a_s = SCHEDULE.alphas_cumprod[60], SCHEDULE.alphas_cumprod[40]
    noise, state = rows(0, 1, 2, 3), to_model(images).requires_grad_()

    n = noise.normal(Purpose.FORWARD, images, step=60, repeat=number + 1)
    diffused = a_t**0.5 * (2 * images.flip(-1) - 1) + (1 - a_t) ** 0.5 * n
    (gradient,) = torch.autograd.grad(((state - diffused) ** 2).sum(), state)
    x0, predicted = denoiser.predict(state, 60)
    fresh = noise.normal(Purpose.REVERSE, images, step=40, repeat=number)
    after = sampler.step(state, x0, predicted, a_t, a_s, fresh)
    beta = 1 - a_t / a_s
    sigma = beta if variance == "fixed_large" else beta * (1 - a_s) / (1 - a_t)
    expected = after - 2.0 * ((1 - a_t) / a_t) ** 0.5 * sigma * gradient

    found = purifier.advance(denoiser, step, state, images.flip(-1), None, noise)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("output", "last"), [("x0", NO_NOISE), ("state", 0)])
def test_a_round_starts_from_the_output_of_the_one_before(
    output: Output, last: int, denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    """Diffused by hand from level `last` to the first index, with noise of its own; the input is
    still what guides it."""
    noise, purifier = rows(0, 1, 2, 3), replace(GUIDED, rounds=3, output=output)
    plan, found = purifier.plan(SCHEDULE), states(purifier, denoiser, images, None, noise)
    first = states(replace(purifier, rounds=1), denoiser, images, None, noise)
    assert all(torch.equal(one, other) for one, other in zip(first, found[:6], strict=True))
    for number in (1, 2):
        before, after = found[5 * number : 5 * number + 2]
        kept = SCHEDULE.alpha_cumprod(100) / SCHEDULE.alpha_cumprod(last)
        fresh = noise.normal(Purpose.RESAMPLE, images, step=0, repeat=number)
        diffused = add_noise(before, kept, fresh)
        step = plan[5 * number]
        assert (step.at, step.via) == (last, 100)
        expected = purifier.advance(denoiser, replace(step, at=100), diffused, images, None, noise)
        assert torch.equal(after, expected)


def test_defaults_are_the_published_ones() -> None:
    """GDMP on CIFAR-10: four rounds from index 36, 60000 * 3 / (16 / 255) on the mean over a batch
    of 100 images of 3 x 32 x 32."""
    purifier = GuidedPurifier()
    plan = purifier.plan(SCHEDULE)
    assert [step.via for step in plan] == [*range(36, 0, -1)] * 4
    assert purifier.guidance == pytest.approx(
        60000 * 3 / (16 / 255) / (100 * 3 * 32 * 32), rel=5e-3
    )


def test_a_pull_beyond_the_target_is_refused() -> None:
    """2 s Sigma is .36 on the step from 100 to 67 and above 2 from 200 to 150."""
    assert GuidedPurifier(strength=0.1, steps=30).plan(SCHEDULE)
    with pytest.raises(InputError, match="overshoots .* from 200 to 150: .* finer grid"):
        GuidedPurifier(strength=0.2, steps=20).plan(SCHEDULE)
    assert GuidedPurifier(strength=0.2, steps=20, guidance=1.0).plan(SCHEDULE)
