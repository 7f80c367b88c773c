"""The simulated queue and shards, held against schedules that can be counted by hand."""

from pathlib import Path

import pytest

from benchmarks.scaling import Timing, committed, queue, shards, table, timing_of
from hetpure.errors import InputError
from hetpure.evaluation.worker import Task
from tests.hetpure.run_records import defended, lines, stored

UNEVEN = {Task("a", 0): 6.0, Task("b", 0): 1.0, Task("a", 1): 2.0, Task("b", 1): 3.0}


def test_by_hand() -> None:
    """Two workers, the row first that is longer in the mean: 6 | 2 + 1 + 3. Shards: block 0 takes
    7, block 1 5."""
    assert queue(UNEVEN, 1) == shards(UNEVEN, 1) == 12
    assert queue(UNEVEN, 2) == 6
    assert shards(UNEVEN, 2) == 7
    assert shards(UNEVEN, 4) == 7
    assert "| 2 | 0.00 | 100.0 | 85.7 |" in table(UNEVEN, [2])
    checked = UNEVEN | {Task("b", None): 5.0}
    assert queue(checked, 2) == 10  # 5 + 2 + 3 | 6 + 1
    assert shards(checked, 2) == 12


def test_attacks_on_a_block_are_one_task_and_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    records = defended("a", [4, 4])  # each block of a cell takes a second
    timing = timing_of(stored(tmp_path / "whole", records, images=2).path)
    assert timing == Timing({Task("a", 0): 2.0, Task("a", None): 0.0}, block=2, limit=0)
    half = stored(tmp_path / "half", [*records, *lines("a", "apgd", [4])], images=2)
    with pytest.raises(InputError, match="is not finished: 1 part missing"):
        timing_of(half.path)


def test_a_run_is_extended_by_its_ordinary_blocks() -> None:
    timing = Timing(UNEVEN | {Task("a", 2): 4.0, Task("b", 2): 5.0}, block=10, limit=7)
    longer = timing.extended(60)
    assert [longer[Task("a", block)] for block in range(6)] == [6, 2, 4, 2, 4, 2]
    assert len(longer) == 12
    with pytest.raises(InputError, match="too short a run"):
        Timing(UNEVEN, block=10, limit=20).extended(60)


def test_the_queue_keeps_64_workers_busy() -> None:
    """On the block times of the run of docs/results.md, extended to 10,000 images; the table of
    docs/cluster.md is made of them."""
    seconds = committed().extended(10_000)
    assert sum(seconds.values()) / 64 / queue(seconds, 64) >= 0.95
    page = (Path(__file__).parent.parent.parent / "docs" / "cluster.md").read_text()
    counts = (1, 4, 16, 64, 256)
    assert all(line in page for line in table(seconds, counts).splitlines()[2:])
