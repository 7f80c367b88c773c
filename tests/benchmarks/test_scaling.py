"""The simulated queue and shards, held against schedules that can be counted by hand."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hetpure.errors import InputError
from hetpure.evaluation.worker import Task
from tests.hetpure.run_records import defended, lines, stored

UNEVEN = {Task("a", 0): 6.0, Task("b", 0): 1.0, Task("a", 1): 2.0, Task("b", 1): 3.0}


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("scaling")


def test_by_hand(benchmark: ModuleType) -> None:
    """Two workers, the row first that is longer in the mean: 6 | 2 + 1 + 3. Shards: block 0 takes
    7, block 1 5."""
    assert benchmark.queue(UNEVEN, 1) == benchmark.shards(UNEVEN, 1) == 12
    assert benchmark.queue(UNEVEN, 2) == 6
    assert benchmark.shards(UNEVEN, 2) == 7
    assert benchmark.shards(UNEVEN, 4) == 7
    assert "| 2 | 0.00 | 100.0 | 85.7 |" in benchmark.table(UNEVEN, [2])
    checked = UNEVEN | {Task("b", None): 5.0}
    assert benchmark.queue(checked, 2) == 10  # 5 + 2 + 3 | 6 + 1
    assert benchmark.shards(checked, 2) == 12


def test_attacks_on_a_block_are_one_task_and_an_unfinished_run_is_refused(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    records = defended("a", [4, 4])  # each block of a cell takes a second
    timing = benchmark.timing_of(stored(tmp_path / "whole", records, images=2).path)
    assert timing == benchmark.Timing({Task("a", 0): 2.0, Task("a", None): 0.0}, block=2, limit=0)
    half = stored(tmp_path / "half", [*records, *lines("a", "apgd", [4])], images=2)
    with pytest.raises(InputError, match="is not finished: 1 part missing"):
        benchmark.timing_of(half.path)


def test_a_run_is_extended_by_its_ordinary_blocks(benchmark: ModuleType) -> None:
    timing = benchmark.Timing(UNEVEN | {Task("a", 2): 4.0, Task("b", 2): 5.0}, block=10, limit=7)
    longer = timing.extended(60)
    assert [longer[Task("a", block)] for block in range(6)] == [6, 2, 4, 2, 4, 2]
    assert len(longer) == 12
    with pytest.raises(InputError, match="too short a run"):
        benchmark.Timing(UNEVEN, block=10, limit=20).extended(60)


def test_the_queue_keeps_64_workers_busy(benchmark: ModuleType) -> None:
    """On the block times of the committed run, extended to 10,000 images."""
    seconds = benchmark.committed().extended(10_000)
    assert sum(seconds.values()) / 64 / benchmark.queue(seconds, 64) >= 0.95
