"""How the processes of an evaluation share its tasks: an atomic counter in their common store."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from hetpure.errors import InputError

LOOK_EVERY = 1.0  # seconds between two looks at what other processes did
SILENCE = 600.0  # seconds after which a process that says nothing is not waited for


def common_store(strategy: Strategy) -> Store:
    """A store of numbers that the processes of a strategy share. All of them have to ask for it."""
    if not isinstance(strategy, DDPStrategy):
        return HashStore()
    assert strategy.cluster_environment is not None
    host = strategy.cluster_environment.main_address
    server = TCPStore(host, 0, is_master=True) if strategy.is_global_zero else None
    port = strategy.broadcast(server.port if server else 0)
    return server or TCPStore(host, port, is_master=False)


class Queue:
    """Gives the numbers from 0, each to one process of the group, and counts what all of them did.
    No collective is called, so nobody waits for anybody.

    Args:
        store: that all of them reach.
        process: number of this process.
        processes: how many there are.
    """

    def __init__(self, store: Store, process: int, processes: int) -> None:
        self._store, self.process, self.processes = store, process, processes

    def claim(self) -> int:
        """The next number is this process's."""
        self.check()
        with self._asking():
            return self._store.add("claimed", 1) - 1

    def check(self) -> None:
        """InputError where a process failed: then the others stop too."""
        with self._asking():
            if self._store.check(["failed"]):
                raise InputError(f"stopped, for {self._store.get('failed').decode()}")

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
            self._store.add("left", 1)

    def wait(self, look: Callable[[], None], silence: float = SILENCE) -> bool:
        """Waits until all processes have left, with a `look` now and then. False where those that
        are left said nothing for so many seconds: they may be dead."""
        heard, since = self.work(), time.monotonic()
        while True:
            look()
            with self._asking():
                if self._store.add("left", 0) == self.processes:
                    return True
            if (work := self.work()) != heard:
                heard, since = work, time.monotonic()
            if time.monotonic() - since > silence:
                return False
            time.sleep(LOOK_EVERY / 4)

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
