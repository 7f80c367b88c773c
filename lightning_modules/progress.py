"""A progress bar in the unit of cost, with the accuracy so far."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column
from torch.distributed import HashStore  # type: ignore[attr-defined]

from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.worker import Watch, task_work, tasks_of
from hetpure.program import say
from hetpure.report.plan import duration
from lightning_modules.compiling import compiling
from lightning_modules.queue import LOOK_EVERY, Queue
from lightning_modules.time_left import TimeLeft


class EvaluationProgress(Watch):
    """One bar for all rows and processes together, in forward passes of the networks. The first
    process shows it: images and accuracy so far of those that it evaluated itself, the row's
    passes a second (a backward pass is two), and the time that is left. Where there is neither a
    terminal nor a notebook with widgets, a line for every finished job takes its place.

    Args:
        run: that is evaluated.
        queue: of the processes that share its tasks; by default this one is alone.
    """

    def __init__(self, run: Run, queue: Queue | None = None) -> None:
        self.queue = queue = queue or Queue(HashStore(), 0, 1)
        self.images = {
            (row.name, cell.name): images
            for row in run.rows.values()
            for cell, images in [*run.main_cells(row), *run.audit_slices(row)]
        }
        self.correct: dict[tuple[str, str], list[float]] = {}
        self._looked = 0.0
        self._row = self._attack = ""
        self.compiled = 0.0  # seconds that torch compiled
        console = Console(stderr=True)
        first, shows = queue.process == 0, can_show(console)
        self.logs = first and not shows
        self.bar = Progress(
            # Wraps, as the times never do; names are shown as they are.
            TextColumn("{task.description}", markup=False, table_column=Column()),
            BarColumn(20, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[pace]}", table_column=Column(no_wrap=True)),
            console=console,
            disable=not first or not shows,
        )
        work: Counter[str] = Counter()
        for task in tasks_of(run):
            work[task.row] += task_work(run, task)
        purified = {name for name, row in run.rows.items() if row.defense.purifier is not None}
        self.left = TimeLeft(work, purified)
        self.task = self.bar.add_task("gradient checks", total=work.total(), pace="")

    def begin(self, row: str, attack: str) -> None:
        self._row, self._attack = row, attack
        self.left.begin(row, check=(row, attack) not in self.images)
        self.bar.update(self.task, description=self._so_far(row, attack))

    def advance(self, work: int) -> None:
        self.left.did(self._row, work)
        self._told(work)

    def skip(self, row: str, work: int) -> None:
        self.left.skipped(row, work)
        self._told(work)

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        self.correct.setdefault((row, attack), []).extend(
            float(np.mean([prediction == record.label for prediction in record.predictions]))
            for record in records
        )
        if self.logs:
            self.look()
            done = self.bar.tasks[self.task].percentage
            say(f"{done:3.0f}% of the run; {self._so_far(row, attack)}; {self.pace()}\n")

    def strike(self, row: str, reason: str) -> None:
        line = f"{row} is struck out: {reason}"
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def compiling(self, run: Run) -> AbstractContextManager[None]:
        """Inside, the bar says when torch compiles for this run, if it does: the network where that
        is asked for, and on accelerators the noise."""
        if run.config.acceleration.compile == "off" and run.device.type == "cpu":
            return nullcontext()
        return compiling(self.begin_compiling, self.end_compiling)

    def begin_compiling(self) -> None:
        """torch compiles now: nothing else is done meanwhile."""
        spent = f", {duration(self.compiled)} so far" if self.compiled else ""
        self.bar.update(self.task, description=f"{self._row}: torch compiles{spent}")
        self.bar.refresh()

    def end_compiling(self, seconds: float) -> None:
        """torch has compiled for so long, which counts for no row's pace."""
        self.compiled += seconds
        self.left.waited(seconds)
        if self.logs and seconds > 1:
            say(f"torch compiled for {duration(seconds)}\n")
        self.bar.update(self.task, description=self._so_far(self._row, self._attack))

    def look(self) -> None:
        """Shows what all processes did. InputError where one of them failed."""
        self._looked = time.monotonic()
        self.queue.check()
        if self.queue.process == 0:
            done = sum(self.queue.work())
            self.bar.update(self.task, completed=done, pace=self.pace())

    def pace(self) -> str:
        """How fast it goes and what is left, as far as that is known."""
        known = []
        if pace := self.left.pace(self._row) if self._row else None:
            known.append(f"{pace:.1f} s/pass" if pace > 1 else f"{1 / pace:.0f} passes/s")
        if (seconds := self._seconds()) is not None:
            known.append(f"{duration(seconds)} left")
        return ", ".join(known)

    def _seconds(self) -> float | None:
        """Of the whole run. This process knows how long it would need for what it did not do; the
        part of that which no process did is shared by all."""
        alone, mine = self.left(), sum(self.left.left.values())
        if alone is None or mine <= 0:
            return alone
        left = sum(self.left.total.values()) - sum(self.queue.work())
        return alone * left / mine / self.queue.processes

    def _told(self, work: int) -> None:
        self.queue.advance(work)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self.look()

    def _so_far(self, row: str, attack: str) -> str:
        if (row, attack) not in self.images:
            return f"{row}: {attack}"
        shares = self.correct.get((row, attack), [])
        accuracy = f", {100 * np.mean(shares):.0f}% right" if shares else ""
        return f"{row}, {attack}: {len(shares)}/{self.images[row, attack]} images{accuracy}"


def can_show(console: Console) -> bool:
    """Whether a bar can be drawn: rich draws it in a notebook by its widgets."""
    return find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
