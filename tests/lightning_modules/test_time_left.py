"""The time that is left holds: within a quarter after the first tenth, by a simulated clock."""

from collections.abc import Iterator

import numpy as np
import pytest

from lightning_modules.time_left import TimeLeft

# Forward passes of a row, and seconds of one: as of the quick table, where a purifier's pass costs
# more than a classifier's.
WORK = {"plain": 800, "trained": 800, "uniform": 9_000, "masked": 13_000, "tuned": 13_000}
PACE = {"plain": 0.002, "trained": 0.002, "uniform": 0.004, "masked": 0.0045, "tuned": 0.0045}
PURIFIED = {"uniform", "masked", "tuned"}
CHECK = 1.5  # seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulated(blocks: int, noise: float = 0.2, skipped: int = 0) -> Iterator[tuple[float, float]]:
    """(seconds since the start, seconds that are said to be left) after every piece of a run. The
    first `skipped` blocks are there already; costs are upper bounds, a fiftieth is not needed."""
    generator, clock = np.random.default_rng(0), Clock()
    left = TimeLeft(WORK, PURIFIED, clock)
    for block in range(blocks):
        for row, work in WORK.items():
            part = work // blocks
            if block < skipped:
                left.skipped(row, part)
                continue
            if block == skipped:
                left.begin(row, check=True)
                clock.now += CHECK
                yield clock.now, left() or 0.0
            left.begin(row, check=False)
            for _ in range(10):
                clock.now += 0.098 * part * PACE[row] * generator.uniform(1 - noise, 1 + noise)
                left.did(row, int(0.098 * part))
                yield clock.now, left() or 0.0
            left.skipped(row, part - 10 * int(0.098 * part))


@pytest.mark.parametrize(("blocks", "skipped"), [(1, 0), (8, 0), (8, 5)])
def test_it_holds_after_the_first_tenth(blocks: int, skipped: int) -> None:
    told = list(simulated(blocks, skipped=skipped))
    end = told[-1][0]
    whole = end - 100
    after = [(now, said) for now, said in told if now - 100 > whole / 10]
    assert len(after) > 20
    for now, said in after:  # at the end, where a quarter is nothing, a fiftieth of the whole
        assert abs(said - (end - now)) < max((end - now) / 4, whole / 50), now


def test_one_speed_for_all_would_not_hold() -> None:
    """The reason for rows: passes that are there already are no speed, and a classifier's say
    nothing of a purifier's."""
    clock = Clock()
    left = TimeLeft({"plain": 100, "purified": 1000}, {"purified"}, clock)
    assert left() is None
    left.begin("plain", check=False)
    clock.now += 1
    left.did("plain", 100)
    left.begin("purified", check=False)
    clock.now += 100
    left.did("purified", 50)
    assert left() == pytest.approx(950 * 2)
    left.skipped("purified", 450)
    assert left() == pytest.approx(500 * 2)
    clock.now += 10
    assert left() == pytest.approx(500 * 2 - 10)


def test_a_wait_is_no_pace() -> None:
    """As for a compiler, within the first pass."""
    clock = Clock()
    left = TimeLeft({"purified": 100}, {"purified"}, clock)
    left.begin("purified", check=False)
    clock.now += 60 + 10
    left.waited(60)
    left.did("purified", 20)
    assert left() == pytest.approx(40)
