"""A progress bar in the unit of cost, with the accuracy so far."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hetpure.attacks import Attack
from hetpure.defense import Defense
from hetpure.evaluation.protocol import CLEAN, Protocol, Record

BACKWARD = 2  # forward passes that a backward pass costs, about


class AttackProgress:
    """One bar for all defences together, in forward passes of the networks."""

    def __init__(
        self,
        attack: Attack,
        protocol: Protocol,
        defenses: dict[str, Defense],
        attacked: dict[str, Defense],
        images: int,
    ) -> None:
        self.images = images
        self.weights = {
            name: (self._passes(defense, False), self._passes(attacked[name], True))
            for name, defense in defenses.items()
        }
        self.correct: dict[str, list[float]] = {name: [] for name in defenses}
        total = sum(
            self.weights[name][1] * attack.purifications(attacked[name])
            + self.weights[name][0] * protocol.purifications(defense, attack.candidates)
            for name, defense in defenses.items()
        )
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("gradient certificates", total=images * total)

    def start(self) -> None:
        self.bar.start()

    def stop(self) -> None:
        self.bar.stop()

    def of(self, name: str) -> Callable[[int, bool], None]:
        """What evaluate_block tells its progress to, for one defence."""
        done = len(self.correct[name])
        robust = f", robust so far {100 * np.mean(self.correct[name]):.0f}%" if done else ""
        self.describe(f"{name}: {done}/{self.images} images{robust}")

        def advance(rows: int, gradient: bool) -> None:
            self.bar.advance(self.task, rows * self.weights[name][gradient])

        return advance

    def finished(self, name: str, records: Sequence[Record]) -> None:
        """Takes a block's records into the accuracy so far."""
        self.correct[name].extend(
            float(np.mean([prediction == record.label for prediction in record.predictions]))
            for record in records
            if record.attack != CLEAN
        )

    def describe(self, text: str) -> None:
        """What is computed now."""
        self.bar.update(self.task, description=text)

    @staticmethod
    def _passes(defense: Defense, gradient: bool) -> int:
        """Forward passes that a purification costs; the classifier alone counts for one."""
        if not gradient:
            return max(1, defense.network_calls)
        calls, differentiated = defense.gradient_calls()
        return max(calls + BACKWARD * differentiated, 1 + BACKWARD)
