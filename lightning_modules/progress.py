"""A progress bar in the unit of cost, with the accuracy so far."""

import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.worker import Watch, task_work, tasks_of
from hetpure.program import say
from lightning_modules.queue import LOOK_EVERY, Queue


class EvaluationProgress(Watch):
    """One bar for all rows and processes together, in forward passes of the networks. The first
    process shows it, with the accuracy so far on the images that it evaluated itself. Where there
    is no terminal, as in a job's log, a line for every finished job takes its place."""

    def __init__(self, run: Run, queue: Queue) -> None:
        self.queue = queue
        self.images = {
            (row.name, cell.name): images
            for row in run.rows.values()
            for cell, images in [*run.main_cells(row), *run.audit_slices(row)]
        }
        self.correct: dict[tuple[str, str], list[float]] = {}
        self._looked = 0.0
        console = Console(stderr=True)
        first = queue.process == 0
        self.logs = first and not console.is_terminal
        self.bar = Progress(
            # Wraps, as the times never do; names are shown as they are.
            TextColumn("{task.description}", markup=False, table_column=Column()),
            BarColumn(20, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            disable=not first or not console.is_terminal,
        )
        total = sum(task_work(run, task) for task in tasks_of(run))
        self.task = self.bar.add_task("gradient checks", total=total)

    def begin(self, row: str, attack: str) -> None:
        self.bar.update(self.task, description=self._so_far(row, attack))

    def advance(self, work: int) -> None:
        self.queue.advance(work)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self.look()

    def finish(self, row: str, attack: str, records: Sequence[Record]) -> None:
        self.correct.setdefault((row, attack), []).extend(
            float(np.mean([prediction == record.label for prediction in record.predictions]))
            for record in records
        )
        if self.logs:
            self.look()
            done = self.bar.tasks[self.task].percentage
            say(f"{done:3.0f}% of the run; {self._so_far(row, attack)}\n")

    def strike(self, row: str, reason: str) -> None:
        line = f"{row} is struck out: {reason}"
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def look(self) -> None:
        """Shows what all processes did. InputError where one of them failed."""
        self._looked = time.monotonic()
        self.queue.check()
        if self.queue.process == 0:
            self.bar.update(self.task, completed=sum(self.queue.work()))

    def _so_far(self, row: str, attack: str) -> str:
        if (row, attack) not in self.images:
            return f"{row}: {attack}"
        shares = self.correct.get((row, attack), [])
        accuracy = f", {100 * np.mean(shares):.0f}% right" if shares else ""
        return f"{row}, {attack}: {len(shares)}/{self.images[row, attack]} images{accuracy}"
