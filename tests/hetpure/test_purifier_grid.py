"""The grid of a purifier: three ways to write it, and the indices that it always holds."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest

from hetpure.errors import InputError
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


@pytest.mark.parametrize("order", [(5, 300, 40), (300, 40, 5, 40), (40, 5, 300, 0)], ids=str)
def test_order_and_repetition_of_timesteps_do_not_matter(order: tuple[int, ...]) -> None:
    plan = UniformPurifier(strength=0.3, timesteps=order).plan(SCHEDULE)
    assert [(step.at, step.to) for step in plan] == [(300, 40), (40, 5), (5, NO_NOISE)]


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


@pytest.mark.parametrize("names", [*combinations(WRITTEN, 2), tuple(WRITTEN)], ids=str)
@pytest.mark.parametrize("kind", [UniformPurifier, HeterogeneousPurifier, GuidedPurifier])
def test_a_grid_written_twice_is_refused(
    kind: Callable[..., GridPurifier], names: tuple[str, ...]
) -> None:
    """Also where both agree: one of them would be ignored as soon as the other changes."""
    with pytest.raises(InputError, match=" and ".join(names) + " contradict"):
        kind(**{name: WRITTEN[name] for name in names})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"steps": 0}, r"steps must be in \[1, 100\], got 0"),
        ({"steps": 101}, r"steps must be in \[1, 100\], got 101"),
        ({"stride": 0}, r"stride must be in \[1, 99\], got 0"),
        ({"stride": -5}, r"stride must be in \[1, 99\], got -5"),
        ({"stride": 100}, r"stride must be in \[1, 99\], got 100"),
        ({"timesteps": ()}, r"timesteps must be in \[0, 99\]"),
        ({"timesteps": (20, -1)}, r"timesteps must be in \[0, 99\], got \(20, -1\)"),
        ({"timesteps": (100, 20)}, r"timesteps must be in \[0, 99\], got \(100, 20\)"),
    ],
    ids=str,
)
@every_kind
def test_a_grid_outside_the_schedule_is_refused(
    purifier: GridPurifier, grid: dict[str, Any], message: str
) -> None:
    """NO_NOISE is -1: as a timestep it would be a level that no network was trained on."""
    with pytest.raises(InputError, match=message):
        replace(purifier, **grid).plan(SHORT)
