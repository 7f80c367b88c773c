"""Noise levels against diffusers' tables and against their definition in exact arithmetic."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from hetpure.errors import InputError
from hetpure.schedule import NO_NOISE, Schedule, linear_schedule
from tests.hetpure.networks import cosine_schedule

LINEAR = linear_schedule()


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (LINEAR, {}),
        (linear_schedule(50, 1e-3, 5e-2), {"beta_start": 1e-3, "beta_end": 5e-2}),
    ],
    ids=["linear", "linear of other betas"],
)
def test_table_is_that_of_diffusers_bit_for_bit(
    schedule: Schedule, settings: dict[str, object]
) -> None:
    """Weights trained with one and used with the other must see the same levels."""
    theirs = DDPMScheduler(num_train_timesteps=len(schedule), **settings)
    assert schedule.alphas_cumprod == tuple(theirs.alphas_cumprod.double().tolist())


@pytest.mark.parametrize("timestep", [-2, 1000, 5000])
def test_an_index_outside_the_table_is_refused(timestep: int) -> None:
    """Python would read index -2 as the second noisiest level."""
    with pytest.raises(ValueError, match=rf"\[-1, 999\], got {timestep}"):
        LINEAR.alpha_cumprod(timestep)


@pytest.mark.parametrize(
    ("length", "strength", "index"),
    [(1000, 0.1, 100), (1000, 0.075, 75), (1000, 1.0, 999), (1000, 0.0004, 0), (100, 0.29, 29)],
    ids=str,
)
def test_strength_is_a_fraction_of_the_schedule(length: int, strength: float, index: int) -> None:
    """t_s = 0.1 means index 100 (SPEC section 1). .29 * 100 is 28.999999999999996 in floats, and 1
    is the last index, not T."""
    assert linear_schedule(length).index(strength) == index


def test_a_level_is_signal_and_spread_of_each_row() -> None:
    schedule = Schedule((0.9, 0.5, 0.2))
    level = schedule.level(torch.tensor([2, 0, 1]), torch.empty(3, 1, 2, 2).double())
    assert level.signal.shape == level.spread.shape == (3, 1, 1, 1)
    torch.testing.assert_close(level.snr_root.flatten(), torch.tensor([0.5, 3.0, 1.0]).double())
    torch.testing.assert_close(level.signal**2 + level.spread**2, torch.ones(3, 1, 1, 1).double())
    assert level.time.tolist() == [2, 0, 1]
    assert schedule.level(torch.tensor([0]), torch.empty(1, 3)).signal.shape == (1, 1)
    kept = level.take(torch.tensor([1]))
    assert (kept.time.tolist(), float(kept.snr_root)) == ([0], pytest.approx(3.0))


def test_a_level_near_the_clean_image_is_exact_in_float32() -> None:
    """1 - abar is 1e-4 at index 0: rounded before it is subtracted it would be off by 3e-4."""
    level = LINEAR.level(torch.tensor([0]), torch.empty(1, 1, 1, 1))
    exact = (1 - LINEAR.alphas_cumprod[0]) ** 0.5
    assert float(level.spread) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timesteps_beyond_the_schedule_are_refused(timestep: int) -> None:
    with pytest.raises(InputError, match=f"timesteps {timestep} to {timestep} .* 0 to 999"):
        LINEAR.level(torch.tensor([timestep]), torch.empty(1, 1, 1, 1))


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule()], ids=["linear", "cosine"])
def test_sigma_is_noise_over_signal(schedule: Schedule) -> None:
    """EDM's noise level; x / sqrt(abar) has it as the standard deviation of its noise."""
    for t in (0, 1, 100, 999):
        alpha = schedule.alphas_cumprod[t]
        assert schedule.sigma(t) == pytest.approx((1 / alpha - 1) ** 0.5, rel=1e-9)
    assert schedule.sigma(NO_NOISE) == 0
    assert all(low < high for low, high in pairwise(map(schedule.sigma, range(NO_NOISE, 1000))))


@pytest.mark.parametrize(
    "schedule",
    [LINEAR, cosine_schedule(), linear_schedule(7), Schedule((0.8,))],
    ids=["linear", "cosine", "seven indices", "one index"],
)
def test_nearest_index_is_that_of_a_search_through_all(schedule: Schedule) -> None:
    """At, between, beside and beyond the levels of the table."""
    levels = torch.tensor([schedule.sigma(t) for t in range(len(schedule))], dtype=torch.float64)
    middle = (levels[1:] + levels[:-1]) / 2
    beside = torch.cat((middle * (1 - 1e-9), middle * (1 + 1e-9)))
    wanted = torch.cat((levels, beside, torch.logspace(-5, 5, 500, dtype=torch.float64)))
    found = [schedule.nearest(float(sigma)) for sigma in wanted]
    assert found == (wanted[:, None] - levels).abs().argmin(1).tolist()
    assert found[: len(levels)] == list(range(len(schedule)))
