"""What an analysis is: images to records, records to a summary."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hetpure.analysis.lines import Line
from hetpure.analysis.subject import Subject, Work
from hetpure.evaluation.protocol import Block

Record = dict[str, Any]  # of one image, as JSON holds it: `sample`, `label`, and what was found


@dataclass(frozen=True)
class Summary:
    """What an analysis found.

    Args:
        lines: its numbers.
        finding: the numbers in words, a sentence a row.
        notes: what holds for the numbers: what coincides, what was left out.
        drawn: what the picture shows beside the lines, as JSON holds it.
    """

    lines: list[Line]
    finding: list[str]
    notes: list[str] = field(default_factory=list)
    drawn: dict[str, Any] = field(default_factory=dict)

    def of(self, row: str, quantity: str, series: str = "") -> list[Line]:
        """The lines of one quantity of a row, in order."""
        return [
            line
            for line in self.lines
            if (line.row, line.quantity, line.series) == (row, quantity, series)
        ]

    def rows(self) -> list[str]:
        """Those that it has lines of, in order."""
        return list(dict.fromkeys(line.row for line in self.lines))


@dataclass(frozen=True)
class Analysis(ABC):
    """Holds settings only. A record is a function of subject, block and settings; a summary is one
    of the records."""

    name: ClassVar[str]

    def check(self, subject: Subject) -> None:
        """InputError where it cannot look at this row, before anything is computed."""
        return  # most can look at all

    @abstractmethod
    def work(self, subject: Subject) -> Work:
        """Network calls for one image, at most."""

    def first_work(self, subject: Subject) -> Work:
        """What the run's first image costs beside that, for pictures of one image."""
        return Work()

    @abstractmethod
    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """A record for each image of the block."""

    @abstractmethod
    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        """What the records of each row say together."""


def entries(subject: Subject, block: Block) -> list[Record]:
    """A record of each image of a block that says which image it is, and whether the row draws any
    noise."""
    return [
        {"sample": sample, "label": label, "stochastic": subject.defense.stochastic}
        for sample, label in zip(block.samples.tolist(), block.labels.tolist(), strict=True)
    ]


def remarks(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """What holds for all numbers of a row: that it is deterministic, that there is one image."""
    found = [
        f"{row}: it draws no noise, so what attackers know of it makes no difference, and all paths"
        " coincide"
        for row, of_row in records.items()
        if not of_row[0]["stochastic"]
    ]
    if any(len(of_row) == 1 for of_row in records.values()):
        found.append("n = 1: there are no intervals")
    return found
