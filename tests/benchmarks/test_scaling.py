"""The simulated queue and shards, held against schedules that can be counted by hand."""

from pathlib import Path

import pytest

from benchmarks.scaling import extended, queue, read, recorded, shards, table, unpacked
from hetpure.errors import InputError
from hetpure.evaluation.records import RunFolder
from lightning_modules.tasks import Task

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


def test_what_was_computed_twice_counts_once_and_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for task, seconds in (UNEVEN | {Task("a", 0): 9.0}).items():
        entry = {"defense": task.row, "attack": "x", "block": task.block}
        folder.append_timing(entry | {"seconds": seconds})
    folder.append_timing({"defense": "a", "attack": "x", "block": 0, "seconds": 4.0})
    folder.append_timing({"defense": "a", "attack": "y", "block": 0, "seconds": 2.0})
    folder.append_timing({"row": "b", "gradient_checks": 5.0})
    assert recorded(folder) == UNEVEN | {Task("b", None): 5.0}
    folder.append_timing({"defense": "a", "attack": "x", "block": 2, "seconds": 1.0})
    with pytest.raises(InputError, match="not finished .1 of its tasks"):
        recorded(folder)


def test_a_run_is_extended_by_its_ordinary_blocks() -> None:
    longer = extended(UNEVEN | {Task("a", 2): 4.0, Task("b", 2): 5.0}, limited=1, blocks=6)
    assert [longer[Task("a", block)] for block in range(6)] == [6, 2, 4, 2, 4, 2]
    assert len(longer) == 12
    with pytest.raises(InputError, match="too short a run"):
        extended(UNEVEN, limited=2, blocks=6)


def test_attacks_on_a_block_are_one_task(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match="no timing"):
        recorded(folder)
    for attack, seconds in (("clean", 1.0), ("pgd_linf", 5.0)):
        folder.append_timing({"defense": "a", "attack": attack, "block": 0, "seconds": seconds})
    folder.append_timing({"peak_memory_bytes": 5})
    folder.append_timing({"row": "a", "gradient_checks": 2.5})
    assert recorded(folder) == {Task("a", 0): 6.0, Task("a", None): 2.5}


def test_the_queue_keeps_64_workers_busy(tmp_path: Path) -> None:
    """On the block times of the run of docs/results.md, extended to 10,000 images; the table of
    docs/cluster.md is made of them."""
    seconds, _ = read(unpacked(tmp_path), 10_000)
    assert sum(seconds.values()) / 64 / queue(seconds, 64) >= 0.95
    told = (Path(__file__).parent.parent.parent / "docs" / "cluster.md").read_text()
    counts = (1, 4, 16, 64, 256)
    assert all(line in told for line in table(seconds, counts).splitlines()[2:])
