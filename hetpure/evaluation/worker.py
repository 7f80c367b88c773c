"""The work of a run: tasks in order, each done once, each result kept as it comes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from hetpure.attacks import Attack, Monitor
from hetpure.evaluation.audit import Check
from hetpure.evaluation.cost import CellCost, cell_cost
from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import CLEAN, CLEAN_CELL, Cell, Record, evaluate_cell
from hetpure.evaluation.provenance import commit
from hetpure.evaluation.row_check import check_gradients, first_gradients
from hetpure.evaluation.rows import Row
from hetpure.evaluation.store import Finished, Job, Store
from hetpure.gradients import GradientError

AT_THE_END = 4  # tasks of each process that are given by size, the largest first
Claim = Callable[[], int | None]


@dataclass(frozen=True)
class Task:
    """What one process does at a time: all jobs of a row on a block, or the check of the row's
    gradients (`block` None)."""

    row: str
    block: int | None


class Watch:
    """Hears what an evaluation does; this one does not listen."""

    def begin(self, row: str, attack: str) -> None:
        """A job, or the check of a row's gradients, begins."""

    def advance(self, work: int) -> None:
        """So much more was done, in forward passes of networks."""

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        """A job ended."""

    def strike(self, row: str, reason: str) -> None:
        """A row is not evaluated any more."""


def evaluate(
    run: Run,
    store: Store,
    claim: Claim | None = None,
    watch: Watch | None = None,
    processes: int = 1,
) -> None:
    """Computes what the store has not yet. `claim` gives this process numbers of tasks, until None
    or one beyond the last; by default all of them in order."""
    tasks = tasks_of(run, processes)
    for number in range(len(tasks)) if claim is None else iter(claim, None):
        if number >= len(tasks):
            return
        work(run, store, tasks[number], watch or Watch())


def tasks_of(run: Run, processes: int = 1) -> list[Task]:
    """All tasks of a run in the order in which they are given."""
    return in_order(list(run.rows), run.blocks, partial(task_work, run), processes)


def in_order(
    rows: Sequence[str], blocks: int, size: Callable[[Task], float], processes: int
) -> list[Task]:
    """Block by block, so that all rows have as many images when a run is stopped. The last ones by
    size: else a large one, begun when nothing else is left, would be waited for. The check of a
    row's gradients comes right before its first block, so that the run's first block does not wait
    for those of all rows; several processes begin both at once."""
    tasks = [Task(row, block) for block in range(blocks) for row in rows]
    end = max(len(tasks) - AT_THE_END * processes, 0)
    last = sorted(tasks[end:], key=size, reverse=True)
    ordered: list[Task] = []
    unchecked = set(rows)
    for task in tasks[:end] + last:
        if task.row in unchecked:
            unchecked.remove(task.row)
            ordered.append(Task(task.row, None))
        ordered.append(task)
    return ordered


def task_work(run: Run, task: Task) -> int:
    """What a task costs, in forward passes; the check of a row's gradients counts for nothing."""
    if task.block is None:
        return 0
    row, protocol = run.rows[task.row], run.config.protocol
    return sum(count * cell_cost(row, cell, protocol).work for _, cell, count in jobs_of(run, task))


@torch.enable_grad()
def work(run: Run, store: Store, task: Task, watch: Watch) -> None:
    """Does a task. A row whose gradients are none is struck out, and the others go on."""
    row = run.rows[task.row]
    if store.struck(row.name) is not None:
        watch.advance(task_work(run, task))
        return
    try:
        if task.block is None:
            _check(run, store, row, watch)
        else:
            for job, cell, count in jobs_of(run, task):
                _compute(run, store, row, job, cell, count, watch)
    except GradientError as error:
        _strike(store, row, str(error), watch)


def jobs_of(run: Run, task: Task) -> Iterator[tuple[Job, Cell, int]]:
    """The jobs of a row on a block, each with its cell and images: some cells have the first images
    of the run only."""
    assert task.block is not None
    positions = run.positions(task.block)
    for cell in run.rows[task.row].cells:
        count = cell.images(positions.stop) - cell.images(positions.start)
        if count:
            yield Job(task.row, cell.name, task.block), cell, count


def _compute(
    run: Run, store: Store, row: Row, job: Job, cell: Cell, count: int, watch: Watch
) -> None:
    """One job, if it is not done."""
    cost = cell_cost(row, cell, run.config.protocol)
    if store.has(job):
        watch.advance(count * cost.work)
        return
    watch.begin(row.name, cell.name)
    monitor = CellMonitor(watch, cost)
    start = time.perf_counter()
    block = run.read(job.block).first(count)
    clean = None
    if cell is not CLEAN_CELL:
        records = store.get(Job(row.name, CLEAN, job.block)).records[:count]
        clean = torch.tensor([record.kept for record in records]).to(block.labels)
    try:
        outcome = evaluate_cell(
            row.name,
            row.defense,
            cell,
            block,
            run.config.protocol,
            run.config.seed,
            clean=clean,
            attacked=row.asked_by(cell),
            monitor=monitor,
        )
    except GradientError as error:
        raise GradientError(f"under {cell.name}, {error}") from None
    seconds = time.perf_counter() - start
    finished = Finished(outcome.records, monitor.iterations, seconds, commit())
    store.put(job, finished, outcome.adversarial)
    watch.advance(count * cost.work - monitor.work)  # a cost is an upper bound
    watch.finish(row.name, cell.name, outcome.records)


class CellMonitor(Monitor):
    """Tells the watch how much of a cell is done, and keeps what its iterations say."""

    def __init__(self, watch: Watch, cost: CellCost) -> None:
        self.watch = watch
        self.cost = cost
        self.work = 0
        self.iterations: list[dict[str, float]] = []

    def differentiated(self, count: int) -> None:
        self._advance(count * self.cost.gradient_work)

    def answered(self, count: int) -> None:
        self._advance(count * self.cost.answer_work)

    def _advance(self, work: int) -> None:
        self.work += work
        self.watch.advance(work)

    def iteration(self, number: int, **values: float) -> None:
        self.iterations.append({"iteration": number, **values})


def _check(run: Run, store: Store, row: Row, watch: Watch) -> None:
    """The gradients of a row, if they are not checked."""
    if store.get_check(row.name) is not None:
        return
    watch.begin(row.name, "gradient check")
    start = time.perf_counter()
    config = run.config
    gradients = first_gradients(row, run.read(0), config.seed, config.attack)
    checks: dict[str, dict[str, Any]] = {}
    if gradients.verdict == "FAIL" and follows_gradient(config.attack, row):
        raise GradientError(gradients.said)
    try:
        checks = check_gradients(run, row)
    except GradientError as error:
        if follows_gradient(config.attack, row):
            raise
        gradients = Check("gradient", "FAIL", str(error))
    seconds = time.perf_counter() - start
    content = {"gradient": asdict(gradients), "gradient_checks": checks, "seconds": seconds}
    store.put_check(row.name, content)
    if (reason := store.struck(row.name)) is not None:
        watch.strike(row.name, reason)


def follows_gradient(attack: Attack, row: Row) -> bool:
    """Whether an attack follows the row's own gradient: a defence that hides it can be attacked
    otherwise, and the audit then says so."""
    return attack.cost(row.attacked).gradients > 0 and attack.execution(row.attacked) is None


def _strike(store: Store, row: Row, reason: str, watch: Watch) -> None:
    store.strike(row.name, reason)
    watch.strike(row.name, reason)
