"""How long an evaluation still takes, from how fast its rows were so far."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

ENOUGH = 0.1  # of a row's work here: from then on its own speed says how long the rest takes


class TimeLeft:
    """Seconds that are left, learned row by row: a forward pass of one row can take longer than
    another's. A row without enough work of its own goes as fast as the rows of its kind, with or
    without a purifier; a kind without any as all others. The checks of gradients, which are no part
    of the work, take the mean of those that are done.

    Args:
        work: by row, what there is to do, in forward passes.
        purified: the rows that purify.
        clock: seconds.
    """

    def __init__(
        self,
        work: Mapping[str, int],
        purified: set[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.left = Counter(work)
        self.total = dict(work)
        self.purified = purified
        self.done: Counter[str] = Counter()
        self.seconds: dict[str, float] = dict.fromkeys(work, 0.0)
        self.unchecked = set(work)
        self.check_seconds: list[float] = []
        self._mark, self._checking = clock(), ""

    def begin(self, row: str, *, check: bool) -> None:
        """A job of a row begins, or the check of its gradients. What was done before has ended."""
        now = self.clock()
        if self._checking:
            self.unchecked.discard(self._checking)
            self.check_seconds.append(now - self._mark)
        if not check:  # that of this row was made before, perhaps by another process
            self.unchecked.discard(row)
        self._mark, self._checking = now, row if check else ""

    def did(self, row: str, work: int) -> None:
        """So much of a row's work was done since the last call."""
        now = self.clock()
        self.seconds[row] += now - self._mark
        self.done[row] += work
        self.left[row] -= work
        self._mark = now

    def waited(self, seconds: float) -> None:
        """So long nothing of a row's work could be done, once: it says nothing of what is left."""
        self._mark += seconds

    def skipped(self, row: str, work: int) -> None:
        """So much need not be done."""
        self.left[row] -= work

    def pace(self, row: str) -> float | None:
        """Seconds of a forward pass of a row; None where nothing was done yet."""
        kind = [name for name in self.total if (name in self.purified) == (row in self.purified)]
        enough = self.done[row] > ENOUGH * (self.done[row] + self.left[row])
        for rows in ([row] if enough else [], kind, list(self.total)):
            if done := sum(self.done[name] for name in rows):
                return sum(self.seconds[name] for name in rows) / done
        return None

    def __call__(self) -> float | None:
        """Seconds that one process needs for all that is left; None while nothing is known."""
        paces = {row: self.pace(row) for row, left in self.left.items() if left > 0}
        if not all(paces.values()):
            return None
        check = sum(self.check_seconds) / max(len(self.check_seconds), 1)
        seconds = len(self.unchecked) * check + sum(
            self.left[row] * pace for row, pace in paces.items() if pace is not None
        )
        return max(seconds - (self.clock() - self._mark), 0.0)
