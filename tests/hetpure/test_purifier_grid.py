"""The grid of a purifier: three ways to write it, and the indices that it always holds."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from hetpure.purifiers import GuidedPurifier, HeterogeneousPurifier, UniformPurifier
from hetpure.purifiers.purifier import GridPurifier
from hetpure.schedule import NO_NOISE, linear_schedule

SCHEDULE, SHORT = linear_schedule(), linear_schedule(100)
KINDS: dict[str, GridPurifier] = {
    "uniform": UniformPurifier(strength=0.3),
    "through": UniformPurifier(strength=0.3, through=0.117),
    "heterogeneous": HeterogeneousPurifier(),
    "guided": GuidedPurifier(strength=0.1),
}
WRITTEN: dict[str, Any] = {"steps": 50, "stride": 20, "timesteps": tuple(range(0, 1000, 20))}
every_kind = pytest.mark.parametrize("purifier", KINDS.values(), ids=KINDS.keys())


@every_kind
@pytest.mark.parametrize("name", WRITTEN)
def test_one_grid_written_in_three_ways_is_one_plan(name: str, purifier: GridPurifier) -> None:
    written = replace(purifier, **{name: WRITTEN[name]}).plan(SCHEDULE)
    assert written == replace(purifier, steps=50).plan(SCHEDULE)
    assert written != replace(purifier, stride=10).plan(SCHEDULE)


@every_kind
def test_the_grid_where_none_is_written(purifier: GridPurifier) -> None:
    """50 points for the schedule; every index where guidance is scaled by a step's length."""
    steps = 1000 if isinstance(purifier, GuidedPurifier) else 50
    assert purifier.plan(SCHEDULE) == replace(purifier, steps=steps).plan(SCHEDULE)


def test_steps_that_do_not_divide_the_schedule_are_rounded() -> None:
    plan = UniformPurifier(steps=7, strength=1.0).plan(SHORT)
    assert [step.at for step in plan] == [99, 86, 71, 57, 43, 29, 14]


def test_a_stride_hangs_on_index_0_and_not_on_the_start() -> None:
    plans = [UniformPurifier(stride=30, strength=s).plan(SCHEDULE) for s in (0.1, 0.2)]
    assert [[step.at for step in plan] for plan in plans] == [
        [100, 90, 60, 30],
        [200, 180, 150, 120, 90, 60, 30],
    ]


SPARSE: list[dict[str, Any]] = [
    {"timesteps": (5,)},
    {"timesteps": (999,)},
    {"timesteps": (0,)},
    {"timesteps": (117, 118, 203)},
    {"stride": 333},
    {"stride": 999},
    {"steps": 3},
    {"steps": 1},
    {"steps": 1000},
]


@pytest.mark.parametrize("output", ["x0", "state"])
@pytest.mark.parametrize("grid", SPARSE, ids=str)
def test_start_stage_boundary_and_0_are_always_in(grid: dict[str, Any], output: str) -> None:
    """And nothing above the start is."""
    purifier = HeterogeneousPurifier(
        t_large=0.2, t_small=0.117, resampling="none", output=output, **grid
    )
    plan = purifier.plan(SCHEDULE)
    indices = [plan[0].at, *(step.to for step in plan)]
    assert all(high > low for high, low in pairwise(indices))
    assert (indices[0], indices[-1]) == (200, NO_NOISE if output == "x0" else 0)
    assert 117 in indices
    assert [step.to for step in plan if step.known] == [t for t in indices[1:] if t >= 117]
