"""Tasks, the queue that gives them out, and the blocks that go with them; in one process."""

import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hetpure.errors import InputError
from lightning_modules import tasks as module
from lightning_modules.tasks import Claimed, Queue, Task, check_in_order, in_order, read_block

ROWS = ["cheap", "dear"]


def cost(task: Task) -> float:
    return {"cheap": 1.0, "dear": 3.0}[task.row] + (task.block == 0)


def queue(count: int = 3) -> Queue:
    return Queue(count, process=0, processes=1, silence=60)


@pytest.mark.parametrize("processes", [1, 2, 100])
def test_every_block_of_every_row_once_after_the_rows_gradient_check(processes: int) -> None:
    tasks = in_order(ROWS, 5, cost, processes)
    assert sorted(map(str, tasks)) == sorted(
        str(Task(row, block)) for row in ROWS for block in (None, *range(5))
    )
    assert tasks[0].block is None, "the first block waits for one gradient check"
    for row in ROWS:
        first = next(number for number, task in enumerate(tasks) if task.row == row)
        assert tasks[first].block is None
        assert tasks[first + 1].row == row


def test_block_by_block_and_at_the_end_the_largest_first() -> None:
    whole = blocks_of(in_order(ROWS, 6, cost, 1))
    assert whole[:8] == [Task(row, block) for block in range(4) for row in ROWS]
    assert all(cost(one) >= cost(other) for one, other in pairwise(whole[8:]))
    by_size = blocks_of(in_order(ROWS, 6, cost, 100))
    assert all(cost(one) >= cost(other) for one, other in pairwise(by_size))


def blocks_of(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if task.block is not None]


def test_each_number_is_given_once() -> None:
    """To however many ask at once: the counter is atomic."""
    one, found = queue(500), []

    def ask() -> None:
        while (number := one.claim()) is not None:
            found.append(number)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(500))
    assert one.claim() is None


def test_queues_do_not_mix() -> None:
    first, second = queue(), queue()
    assert [first.claim(), first.claim(), second.claim()] == [0, 1, 0]
    first.advance(5)
    first.advance(2)
    assert (first.work(), second.work()) == ([7], [0])


def test_a_failure_is_told_and_the_work_goes_on_no_further() -> None:
    one = Queue(3, process=1, processes=2, silence=60)
    assert one.claim() == 0
    one.fail("no memory")
    one.fail("what came of it")
    for ask in (one.claim, one.check, lambda: one.wait(lambda: None)):
        with pytest.raises(InputError, match="process 1 failed: no memory"):
            ask()


def test_the_silent_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 2 gives signs of life for a while, then no more; 1 leaves."""
    clock, store = [0.0], torch.distributed.HashStore()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "HashStore", lambda: store)
    monkeypatch.setattr(module, "_opened", iter([7, 7, 7]))
    monkeypatch.setattr(module, "BEAT_EVERY", 1e6)  # by hand only
    zero, one, two = (Queue(3, process, 3, silence=60) for process in range(3))
    zero.leave()
    looks: list[float] = []

    def look() -> None:
        clock[0] += 20
        looks.append(clock[0])
        if len(looks) == 2:
            one.leave()
        if len(looks) <= 3:
            two.beat()

    assert zero.wait(look) == [2]
    assert 120 < looks[-1] <= 160  # heard of at 60, or at the look after it
    two.leave()
    assert zero.wait(look) == []


def test_who_is_busy_longer_than_the_silence_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread gives the signs of life, more often than the silence is long."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(module, "HashStore", lambda: store)
    monkeypatch.setattr(module, "_opened", iter([7, 7]))
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    zero, one = (Queue(3, process, 2, silence=0.4) for process in range(2))
    zero.leave()
    threading.Timer(1.5, one.leave).start()  # in the middle of a long gradient check until then
    assert zero.wait(lambda: None) == []


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(7)), **({"batch_size": 3} | settings))


def test_blocks_are_the_loaders_batches() -> None:
    whole = list(loader())
    for number, batch in enumerate(whole):
        assert torch.equal(read_block(loader(), number)[0], batch[0])
    assert [len(batch[0]) for batch in whole] == [3, 3, 1]


@pytest.mark.parametrize(
    "settings", [{"shuffle": True}, {"drop_last": True}, {"batch_size": None}], ids=str
)
def test_loaders_without_an_order_are_refused(settings: dict[str, Any]) -> None:
    check_in_order(loader())
    with pytest.raises(InputError, match="in order"):
        check_in_order(loader(**settings))


def test_lightnings_loop_gets_what_is_claimed_and_no_more() -> None:
    class Named(TensorDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"sample": torch.tensor(index)}

    own = queue(4)
    tasks = in_order(["a", "b"], 1, lambda task: 1.0, 1)
    images = DataLoader(Named(torch.arange(3)), batch_size=3)
    claimed = Claimed(4, lambda: (own, tasks), images)
    assert len(claimed) == 4
    own.claim()
    found = list(claimed)
    assert [batch["task"] for batch in found] == [1, 2, 3]
    assert all(batch["sample"].tolist() == [0, 1, 2] for batch in found)
