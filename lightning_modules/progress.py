"""A progress bar in the unit of cost, with the accuracy so far."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from hetpure.attacks import Monitor
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Cell, Protocol, Record
from hetpure.gradients import Execution
from lightning_modules.rows import Row
from lightning_modules.signals import say
from lightning_modules.tasks import LOOK_EVERY, Queue

BACKWARD = 2  # forward passes that a backward pass costs, about


class AttackProgress:
    """One bar for all rows and processes together, in forward passes of the networks. The first
    process shows it, with the accuracy so far on the images that it evaluated itself. Where there
    is no terminal, as in a job's log, a line for every finished block takes its place."""

    def __init__(self, rows: Sequence[Row], protocol: Protocol, images: int, queue: Queue) -> None:
        self.images = images
        self.limits = {(r.name, c.name): c.limit for r in rows for c in r.cells if c.limit}
        self.queue = queue
        self.correct: dict[tuple[str, str], list[float]] = {}
        self._looked = 0.0
        console = Console(stderr=True)
        self.logs = queue.process == 0 and not console.is_terminal
        total = sum(block_work(row, protocol, 0, images) for row in rows)
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column()),  # wraps; the times never do
            BarColumn(20, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            disable=queue.process > 0 or not console.is_terminal,
        )
        self.task = self.bar.add_task("gradient checks", total=total)

    def start(self) -> None:
        self.bar.start()

    def stop(self) -> None:
        self.bar.stop()

    def advance(self, work: int) -> None:
        """This process did so much more."""
        self.queue.advance(work)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Shows what all processes did. InputError where one of them failed."""
        self._looked = time.monotonic()
        self.queue.check()
        if self.queue.process == 0:
            self.bar.update(self.task, completed=sum(self.queue.work()))

    def describe(self, text: str) -> None:
        """What is computed now."""
        self.bar.update(self.task, description=text)

    def begun(self, row: Row, name: str, cell: Cell | None = None) -> "CellMonitor":
        """What one cell, or the clean images, of a block tells of itself."""
        self.describe(self._so_far(row.name, name))
        execution = None if cell is None else cell.attack.execution(row.attacked)
        return CellMonitor(self, answering(row.defense), differentiating(row.attacked, execution))

    def skipped(self, row: Row, cell: Cell, count: int, protocol: Protocol) -> None:
        """A cell's block of so many images was finished by an earlier run."""
        self.advance(count * work(row, cell, protocol))

    def skipped_clean(self, row: Row, count: int, protocol: Protocol) -> None:
        """So many clean images were finished by an earlier run."""
        self.advance(count * clean_work(row, protocol))

    def finished(self, name: str, attack: str, records: Sequence[Record]) -> None:
        """Takes a block's records into the accuracy so far."""
        self.correct.setdefault((name, attack), []).extend(
            float(np.mean([prediction == record.label for prediction in record.predictions]))
            for record in records
        )
        if self.logs:
            self.look()
            done = self.bar.tasks[self.task].percentage
            say(f"{done:3.0f}% of the run; {self._so_far(name, attack)}\n")

    def _so_far(self, name: str, attack: str) -> str:
        found = self.correct.get((name, attack), [])
        accuracy = f", {100 * np.mean(found):.0f}% right" if found else ""
        images = min(self.limits.get((name, attack), self.images), self.images)
        return f"{name}, {attack}: {len(found)}/{images} images{accuracy}"


class CellMonitor(Monitor):
    """Moves the bar, and keeps what the iterations say."""

    def __init__(self, progress: AttackProgress, answer: int, gradient: int) -> None:
        self.progress = progress
        self.answer = answer
        self.gradient = gradient
        self.iterations: list[dict[str, Any]] = []

    def rows(self, count: int) -> None:
        self.progress.advance(count * self.gradient)

    def answered(self, count: int) -> None:
        self.progress.advance(count * self.answer)

    def iteration(self, number: int, **values: float) -> None:
        self.iterations.append({"iteration": number, **values})


def block_work(row: Row, protocol: Protocol, first: int, images: int) -> int:
    """Forward passes that a row costs for so many images from the `first` on."""
    total = images * clean_work(row, protocol)
    for cell in row.cells:
        left = images if cell.limit is None else min(max(cell.limit - first, 0), images)
        total += left * work(row, cell, protocol)
    return total


def clean_work(row: Row, protocol: Protocol) -> int:
    """Forward passes that one clean image costs."""
    return protocol.purifications(row.defense) * answering(row.defense)


def work(row: Row, cell: Cell, protocol: Protocol) -> int:
    """Forward passes that a cell costs for one image."""
    attack, attacked = cell.attack, row.attacked
    gradient = differentiating(attacked, attack.execution(attacked))
    asked = attack.queries(attacked, cell.known) + protocol.purifications(row.defense, cell)
    return attack.purifications(attacked, cell.known) * gradient + asked * answering(row.defense)


def answering(defense: Defense) -> int:
    """Forward passes of one answer; the classifier alone counts for one."""
    return max(1, defense.network_calls)


def differentiating(defense: Defense, execution: Execution | None) -> int:
    """Forward passes that a gradient costs."""
    calls, differentiated = defense.gradient_calls(execution)
    return max(calls + BACKWARD * differentiated, 1 + BACKWARD)
