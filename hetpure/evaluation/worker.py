"""The work of a run: tasks in order, each done once, each result kept as it comes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from hetpure.attacks import Attack, Monitor
from hetpure.evaluation.audit import (
    Check,
    Course,
    audit_order,
)
from hetpure.evaluation.cascade import already_wrong, earlier
from hetpure.evaluation.cells import base_cell
from hetpure.evaluation.cost import CellCost, audit_costs, cell_cost
from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import CLEAN, CLEAN_CELL, Cell, Outcome, Record, evaluate_cell
from hetpure.evaluation.provenance import commit
from hetpure.evaluation.row_check import check_gradients, first_gradients
from hetpure.evaluation.rows import Row
from hetpure.evaluation.sameness import DISGUISES, sameness
from hetpure.evaluation.store import Finished, Job, Store
from hetpure.gradients import APPROXIMATIONS, GradientError

AT_THE_END = 4  # tasks of each process that are given by size, the largest first
Claim = Callable[[], int | None]


@dataclass(frozen=True)
class Task:
    """What one process does at a time: all jobs of a row on a block, its `audit`, or else the check
    of its gradients."""

    row: str
    block: int | None = None
    audit: bool = False


class Watch:
    """Hears what an evaluation does; this one does not listen."""

    def begin(self, row: str, attack: str) -> None:
        """A job, or the check of a row's gradients, begins."""

    def advance(self, work: int) -> None:
        """So much more was done, in forward passes of networks."""

    def skip(self, row: str, work: int) -> None:
        """So much of a row's work need not be done: it is there already, or not worth it. Below 0
        where other work takes its place."""
        self.advance(work)

    def iteration(self, row: str, attack: str, number: int, values: Mapping[str, float]) -> None:
        """An iteration of an attack ended: what it told, as its loss, in means over the block."""

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        """A job ended."""

    def strike(self, row: str, reason: str) -> None:
        """A row is not evaluated any more."""


class Watches(Watch):
    """Tells several watches what it hears."""

    def __init__(self, *watches: Watch) -> None:
        self.watches = watches

    def begin(self, row: str, attack: str) -> None:
        for watch in self.watches:
            watch.begin(row, attack)

    def advance(self, work: int) -> None:
        for watch in self.watches:
            watch.advance(work)

    def skip(self, row: str, work: int) -> None:
        for watch in self.watches:
            watch.skip(row, work)

    def iteration(self, row: str, attack: str, number: int, values: Mapping[str, float]) -> None:
        for watch in self.watches:
            watch.iteration(row, attack, number, values)

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        for watch in self.watches:
            watch.finish(row, attack, records)

    def strike(self, row: str, reason: str) -> None:
        for watch in self.watches:
            watch.strike(row, reason)


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
    audited = [name for name, row in run.rows.items() if row.audit]
    return in_order(list(run.rows), audited, run.blocks, partial(task_work, run), processes)


def in_order(
    rows: Sequence[str],
    audited: Sequence[str],
    blocks: int,
    size: Callable[[Task], float],
    processes: int,
) -> list[Task]:
    """Block by block, so that all rows have as many images when a run is stopped; then the audits,
    which look at images of all blocks. The last ones by size: else a large one, begun when nothing
    else is left, would be waited for. The check of a row's gradients comes right before its first
    block, so that the run's first block does not wait for those of all rows; several processes
    begin both at once."""
    tasks = [Task(row, block) for block in range(blocks) for row in rows]
    tasks += [Task(row, audit=True) for row in audited]
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
    """What a task costs at most, in forward passes; the check of a row's gradients counts for
    nothing."""
    row, protocol = run.rows[task.row], run.config.protocol
    if task.audit:
        return sum(
            count * cell_cost(row, cell, protocol).work for cell, count in run.audit_slices(row)
        )
    if task.block is None:
        return 0
    jobs = jobs_of(run, task.row, task.block)
    return sum(len(positions) * cell_cost(row, cell, protocol).work for _, cell, positions in jobs)


@torch.enable_grad()
def work(run: Run, store: Store, task: Task, watch: Watch) -> None:
    """Does a task. A row whose gradients are none is struck out, and the others go on."""
    row = run.rows[task.row]
    if store.struck(row.name) is not None:
        watch.skip(row.name, task_work(run, task))
        return
    try:
        if task.audit:
            _audit(run, store, row, watch)
        elif task.block is None:
            _check(run, store, row, watch)
        else:
            for job, cell, positions in jobs_of(run, task.row, task.block):
                _compute(run, store, row, job, cell, positions, watch)
    except GradientError as error:
        _strike(run, store, task, str(error), watch)


def jobs_of(run: Run, row: str, block: int) -> Iterator[tuple[Job, Cell, range]]:
    """The jobs of a row on a block, each with its cell and the positions of its images: some cells
    have the first images of the run only."""
    positions = run.positions(block)
    for cell in run.rows[row].cells:
        stop = cell.images(positions.stop)
        if stop > positions.start:
            yield Job(row, cell.name, block), cell, range(positions.start, stop)


def _compute(
    run: Run,
    store: Store,
    row: Row,
    job: Job,
    cell: Cell,
    positions: Sequence[int],
    watch: Watch,
) -> None:
    """One job, if it is not done."""
    cost = cell_cost(row, cell, run.config.protocol)
    if store.has(job):
        watch.skip(row.name, len(positions) * cost.work)
        return
    watch.begin(row.name, cell.name)
    monitor = CellMonitor(watch, cost, row.name, cell.name)
    start = time.perf_counter()
    block, before = run.images.read(positions), None
    left = torch.arange(len(positions))
    clean = None
    if cell is not CLEAN_CELL:
        records = _records(run, store, row, CLEAN, positions)
        clean = torch.tensor([record.kept for record in records]).to(block.labels)
    if run.config.cascade and earlier(row, cell):
        before = already_wrong(store, row, cell, job.block, len(positions))
        left = before.left
    outcome = Outcome([], block.images[:0])
    try:
        if len(left):
            outcome = evaluate_cell(
                row.name,
                row.defense,
                cell,
                block.take(left.to(block.labels.device)),
                run.config.protocol,
                run.config.seed,
                clean=None if clean is None else clean[left.to(clean.device)],
                attacked=row.asked_by(cell),
                monitor=monitor,
            )
    except GradientError as error:
        raise GradientError(f"under {cell.name}, {error}") from None
    if before is not None:
        outcome = before.completed(outcome, cell)
    seconds = time.perf_counter() - start
    finished = Finished(outcome.records, monitor.iterations, seconds, commit())
    store.put(job, finished, outcome.adversarial)
    watch.skip(row.name, len(positions) * cost.work - monitor.work)  # a cost is an upper bound
    watch.finish(row.name, cell.name, outcome.records)


def _audit(run: Run, store: Store, row: Row, watch: Watch) -> None:
    """A row's audit, look by look, until every check is settled or the budget is spent. The records
    that it compares are of earlier tasks; those that another process still works at are computed
    here too, so that nobody waits for a process that may have been killed."""
    config, base, cells = run.config, base_cell(list(row.cells)), {c.name: c for c in row.audit}
    assert config.audit is not None
    order = audit_order(run.images.samples, config.seed)
    for block in run.blocks_of(order[: config.audit.images]):
        for cell in (CLEAN_CELL, base):
            job = Job(row.name, cell.name, block)
            _compute(run, store, row, job, cell, run.positions(block), Watch())
    slice_of_all = order[: config.audit.images]
    course = Course(
        audit_costs(row, config.protocol),
        config.audit,
        len(order),
        run.block,
        {name: _records(run, store, row, name, slice_of_all) for name in (CLEAN, base.name)},
        base.name,
        row.defense.classifier.num_classes,
    )
    left = task_work(run, Task(row.name, audit=True))
    while (look := course.next()) is not None:
        name, number, places = look
        job = Job(row.name, name, number)
        _compute(run, store, row, job, cells[name], [order[place] for place in places], watch)
        left -= len(places) * cell_cost(row, cells[name], config.protocol).work
        course.add(name, places, store.get(job).records)
    # Of slices that did not grow; below 0 where one grew in another's place.
    watch.skip(row.name, left)


def _records(
    run: Run, store: Store, row: Row, attack: str, positions: Sequence[int]
) -> list[Record]:
    """Those of the images at these positions under an attack that has all images."""
    of_blocks = {
        block: store.get(Job(row.name, attack, block)).records for block in run.blocks_of(positions)
    }
    return [of_blocks[position // run.block][position % run.block] for position in positions]


class CellMonitor(Monitor):
    """Tells the watch how much of a row's cell is done and what its iterations say, and keeps
    that."""

    def __init__(self, watch: Watch, cost: CellCost, row: str, attack: str) -> None:
        self.watch = watch
        self.cost = cost
        self.row, self.attack = row, attack
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
        self.watch.iteration(self.row, self.attack, number, values)


def _check(run: Run, store: Store, row: Row, watch: Watch) -> None:
    """The gradients of a row, if they are not checked."""
    if store.get_check(row.name) is not None:
        return
    watch.begin(row.name, "gradient check")
    start = time.perf_counter()
    config = run.config
    gradients = first_gradients(row, run.read(0), config.seed, config.attack)
    checks: dict[str, dict[str, Any]] = {}
    followed = follows_gradient(config.attack, row)
    if gradients.verdict == "FAIL" and followed:
        raise GradientError(gradients.said)
    try:
        checks = check_gradients(run, row)
    except GradientError as error:
        if followed:
            raise
        gradients = Check("gradient", "FAIL", str(error))
    few = run.images.read(audit_order(run.images.samples, config.seed)[:DISGUISES])
    same = sameness(row.defense, few, config.seed, config.acceleration.precision)
    seconds = time.perf_counter() - start
    content = {
        "gradient": asdict(gradients),
        "gradient_checks": checks,
        "sameness": [asdict(check) for check in same],
        "strikes": followed,
        "seconds": seconds,
    }
    store.put_check(row.name, content)
    if (reason := store.struck(row.name)) is not None:
        watch.strike(row.name, reason)


def follows_gradient(attack: Attack, row: Row) -> bool:
    """Whether an attack follows the row's own gradient: a defence that hides it can be attacked
    otherwise, and the audit then says so."""
    exact = row.attacked.execution.policy not in APPROXIMATIONS
    follows = attack.cost(row.attacked).gradients > 0 and attack.execution(row.attacked) is None
    return exact and follows


def _strike(run: Run, store: Store, task: Task, reason: str, watch: Watch) -> None:
    """Strikes a task's row out, for what the check of its gradients finds where that is the cause:
    the reason does not hang on which of the row's tasks came first."""
    row = run.rows[task.row]
    if task != Task(task.row):  # else the reason is the check's
        try:
            _check(run, store, row, watch)
        except GradientError as error:
            reason = str(error)
    store.strike(row.name, reason)
    watch.strike(row.name, reason)
