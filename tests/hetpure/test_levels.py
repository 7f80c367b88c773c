"""The noise levels of training: their laws, and that they are what the papers say."""

import math

import pytest
import torch
from scipy import stats

from hetpure.errors import InputError
from hetpure.levels import ContinuousLevels, DiscreteLevels, Levels, LogNormalLevels
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import cosine_schedule, rows

SCHEDULE = linear_schedule()
COUNT = 4000
LIKE = torch.empty(COUNT, 1, 2, 2, dtype=torch.float64)
EVERY = [DiscreteLevels(), ContinuousLevels(), LogNormalLevels()]


@pytest.mark.parametrize("levels", EVERY, ids=str)
def test_every_row_and_update_has_its_own_level_and_variance_is_preserved(levels: Levels) -> None:
    level = levels.draw(SCHEDULE, rows(COUNT), LIKE)
    assert level.signal.shape == level.spread.shape == (COUNT, 1, 1, 1)
    torch.testing.assert_close(level.signal**2 + level.spread**2, torch.ones_like(level.signal))
    alone = levels.draw(SCHEDULE, rows(COUNT).take(torch.tensor([7])), LIKE[:1])
    assert torch.equal(alone.signal[0], level.signal[7])
    other = levels.draw(SCHEDULE, rows(COUNT, index=1), LIKE)
    assert not torch.equal(other.signal, level.signal)


def test_indices_are_equally_often() -> None:
    found = DiscreteLevels().draw(SCHEDULE, rows(COUNT), LIKE).time
    assert (int(found.min()), int(found.max())) == (0, 999)
    counts = torch.bincount(found // 50, minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3
    few = DiscreteLevels(lowest=3, highest=5).draw(SCHEDULE, rows(COUNT), LIKE).time
    assert few.unique().tolist() == [3, 4, 5]


def test_continuous_times_are_uniform_and_discretise_to_the_schedule() -> None:
    """Where t (T - 1) is near an index, so is the level: the linear schedule is the SDE's."""
    levels = ContinuousLevels()
    level = levels.draw(SCHEDULE, rows(COUNT), LIKE)
    t = level.time / 999
    assert stats.kstest(t, "uniform", args=(1e-5, 1 - 1e-5)).pvalue > 1e-3
    index = level.time.round().long()
    near = (level.time - index).abs() < 0.05
    alpha = torch.tensor(SCHEDULE.alphas_cumprod).double()[index[near]]
    found = level.signal.flatten()[near] ** 2
    assert ((found - alpha).abs() < 0.01).all()
    half = math.exp(-19.9 * 0.25 / 2 - 0.1 * 0.5)  # t = 1/2, eq. 29
    nearest = (t - 0.5).abs().argmin()
    assert float(level.signal.flatten()[nearest] ** 2) == pytest.approx(half, rel=0.02)


def test_sigma_is_log_normal() -> None:
    level = LogNormalLevels().draw(SCHEDULE, rows(COUNT), LIKE)
    assert stats.kstest(level.time.log(), "norm", args=(-1.2, 1.2)).pvalue > 1e-3
    torch.testing.assert_close(level.spread / level.signal, level.time.reshape(-1, 1, 1, 1))


def test_small_noise_is_exact_in_float32() -> None:
    """sigma = e^-6: 1 - signal^2 is 6e-6, of which float32 would keep two digits."""
    levels = LogNormalLevels(mean=-6, std=0.01)
    level = levels.draw(SCHEDULE, rows(8), LIKE[:8].float())
    exact = levels.draw(SCHEDULE, rows(8), LIKE[:8])
    assert level.spread.dtype == torch.float32
    torch.testing.assert_close(level.spread.double(), exact.spread, rtol=1e-6, atol=0)


def test_levels_must_be_those_of_the_network() -> None:
    for levels in (DiscreteLevels(), ContinuousLevels(), DiscreteLevels(highest=999)):
        levels.check(SCHEDULE, "epsilon")
    LogNormalLevels().check(SCHEDULE, "edm")
    with pytest.raises(InputError, match="EDM's preconditioning"):
        LogNormalLevels().check(SCHEDULE, "epsilon")
    with pytest.raises(InputError, match="other noise levels"):
        ContinuousLevels().check(cosine_schedule(), "epsilon")
    with pytest.raises(InputError, match="other noise levels"):
        ContinuousLevels(beta_max=10).check(SCHEDULE, "epsilon")
