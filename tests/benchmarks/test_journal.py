"""The clocks of the journal's benchmark count what they are laid around."""

import time
from itertools import chain

import pytest

from benchmarks.journal import PARTS, Clock


def test_a_clock_counts_calls_and_seconds_failed_ones_too() -> None:
    clock = Clock()

    def slow(fail: bool) -> str:
        time.sleep(0.02)
        if fail:
            raise ValueError("slow")
        return "done"

    timed = clock.around(slow)
    assert timed(False) == "done"
    with pytest.raises(ValueError, match="slow"):
        timed(fail=True)
    assert clock.calls == 2
    assert 0.04 <= clock.seconds < 2
    assert 0 < clock.first < time.perf_counter()


def test_what_is_timed_exists() -> None:
    places = chain.from_iterable(PARTS.values())
    assert all(callable(getattr(owner, name)) for owner, name in places)
