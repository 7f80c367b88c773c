"""The work of an evaluation in tasks, and the queue that gives each of them to one process."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.utils.data import DataLoader, SequentialSampler

from hetpure.errors import InputError

AT_THE_END = 4  # tasks of each process that are given by size, the largest first
LOOK_EVERY = 1.0  # seconds between two looks at what other processes did
BEAT_EVERY = 5.0  # seconds between two signs of life, at most
_opened = itertools.count()  # queues; every process opens the same ones in the same order


@dataclass(frozen=True)
class Task:
    """All attacks on one row for one block of images, or the row's gradient check (`block` None)."""

    row: str
    block: int | None


def in_order(
    rows: Sequence[str], blocks: int, cost: Callable[[Task], float], processes: int
) -> list[Task]:
    """Block by block, so that all rows have as many images when a run is stopped. The last ones by
    size: else a large one, begun when nothing else is left, would be waited for. A row's
    gradient check comes right before its first block, so that the run's first block does not wait for
    those of all rows; several processes begin both at once."""
    tasks = [Task(row, block) for block in range(blocks) for row in rows]
    end = max(len(tasks) - AT_THE_END * processes, 0)
    last = sorted(tasks[end:], key=cost, reverse=True)
    found: list[Task] = []
    unchecked = set(rows)
    for task in tasks[:end] + last:
        if task.row in unchecked:
            unchecked.remove(task.row)
            found.append(Task(task.row, None))
        found.append(task)
    return found


class Queue:
    """Gives the numbers 0 to `count` - 1, each to one process of the group, and counts what all of
    them did. It is an atomic counter in the process group's own store, and without a group in one
    of this process: no collective is called, so nobody waits for anybody.

    Args:
        count: of the tasks.
        process: number of this process.
        processes: how many there are.
        silence: seconds after which a process that says nothing is taken for dead.
    """

    def __init__(self, count: int, process: int, processes: int, silence: float) -> None:
        self.count, self.process, self.processes, self.silence = count, process, processes, silence
        store = _get_default_store() if dist.is_initialized() else HashStore()
        self._store = PrefixStore(f"hetpure/{next(_opened)}", store)
        self._left = threading.Event()
        if processes > 1:  # a long gradient check, or a compilation, asks the queue nothing
            threading.Thread(target=self._beat_on, daemon=True).start()

    def _beat_on(self) -> None:
        with suppress(InputError):  # nobody listens any more
            while not self._left.wait(min(BEAT_EVERY, self.silence / 4)):
                self.beat()

    def claim(self) -> int | None:
        """A number for this process, None where none is left."""
        self.check()
        with self._asking():
            number = self._store.add("claimed", 1) - 1
        return number if number < self.count else None

    def check(self) -> None:
        """InputError where a process failed: then the others stop too."""
        with self._asking():
            if self._store.check(["failed"]):
                raise InputError(f"stopped, for {self._store.get('failed').decode()}")

    def beat(self) -> None:
        """This process is alive."""
        with self._asking():
            self._store.add(f"alive/{self.process}", 1)

    def advance(self, work: int) -> None:
        """This process did so much more."""
        with self._asking():
            self._store.add(f"work/{self.process}", work)

    def work(self) -> list[int]:
        """What each process did."""
        with self._asking():
            return [self._store.add(f"work/{process}", 0) for process in range(self.processes)]

    def fail(self, why: str) -> None:
        """Tells the others to stop."""
        with suppress(dist.DistError):  # nobody is left to be told
            if not self._store.check(["failed"]):
                self._store.set("failed", f"process {self.process} failed: {why}")

    def leave(self) -> None:
        """This process has finished its tasks and found no other."""
        with self._asking():
            self._store.set(f"left/{self.process}", "")
        self._left.set()

    def wait(self, look: Callable[[], None]) -> list[int]:
        """Waits until all processes have left, with a `look` now and then; those that said nothing
        for `silence` seconds, which are not waited for."""
        heard, since = [-1] * self.processes, [0.0] * self.processes
        waiting = set(range(self.processes))
        while True:
            self.check()
            now = time.monotonic()
            with self._asking():
                waiting = {one for one in waiting if not self._store.check([f"left/{one}"])}
                beats = [self._store.add(f"alive/{one}", 0) for one in range(self.processes)]
            for one in waiting:
                if beats[one] > heard[one]:
                    since[one] = now
            heard = beats
            silent = [one for one in waiting if now - since[one] > self.silence]
            if len(silent) == len(waiting):
                return silent
            look()
            time.sleep(LOOK_EVERY)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise InputError(
                f"process {self.process} no longer reaches the first one"
                f" ({str(error).splitlines()[0][:100]}): what was finished is kept; start the same"
                " command again"
            ) from None


class Claimed:
    """What Lightning's loop goes through: the tasks that this process claims, with their images.

    Args:
        count: of all tasks.
        queue_and_tasks: asked when the loop begins, when there is a process group.
        loader: of the images, in order; its batches are the blocks.
    """

    def __init__(
        self,
        count: int,
        queue_and_tasks: Callable[[], tuple[Queue, Sequence[Task]]],
        loader: DataLoader[Any],
    ) -> None:
        self.count = count
        self.queue_and_tasks = queue_and_tasks
        self.loader = loader

    def __len__(self) -> int:
        """Of all processes: Lightning claims none in advance where it knows a number."""
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        queue, tasks = self.queue_and_tasks()
        while (number := queue.claim()) is not None:
            task = tasks[number]
            yield {"task": number} | read_block(self.loader, task.block or 0)


def check_in_order(loader: DataLoader[Any]) -> None:
    """InputError unless the loader's batches are its samples in order, none left out."""
    right = isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)
    if not right or loader.batch_size is None or loader.drop_last:
        raise InputError(
            "the data's test_dataloader must be a DataLoader that gives all samples in order, in"
            " batches: without shuffle, sampler or drop_last"
        )


def read_block(loader: DataLoader[Any], number: int) -> dict[str, Any]:
    """The batch of that number, of a loader that gives its samples in order."""
    assert loader.batch_size is not None
    first = number * loader.batch_size
    rows = range(len(loader.dataset))[first : first + loader.batch_size]  # type: ignore[arg-type]
    batch: dict[str, Any] = loader.collate_fn([loader.dataset[row] for row in rows])
    return batch
