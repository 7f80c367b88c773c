"""How much of the white box's robustness is gradient noise, how much report noise, and how much is
left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Line, Place, accuracy_line, difference_line, in_words
from hetpure.analysis.subject import Subject, Work, right
from hetpure.errors import FieldError, check_at_least
from hetpure.evaluation.protocol import CLEAN, Block, Cell

WHITE, MORE, BOTH = "white box", "white box, more EOT", "DW-both"
GRADIENT, REPORT = "gradient noise", "report noise"


@dataclass(frozen=True)
class Randomness(Analysis):
    """Takes the noise away from an attack in two steps.

        gradient noise = accuracy(white box) - accuracy(white box, more EOT)
        report noise   = accuracy(white box, more EOT) - accuracy(DW-both)
        left           = accuracy(DW-both)

    The three add up to the accuracy under the white box. A share can be negative: then the stronger
    attacker found less. More draws still leave some gradient noise, and that is counted as report
    noise: the first share is at least so large, the second at most.

    Args:
        more_eot: so many times the attack's draws of each gradient.
    """

    name: ClassVar[str] = "randomness"

    more_eot: int = 8

    def __post_init__(self) -> None:
        check_at_least(self, 2, "more_eot")

    def cells(self, subject: Subject) -> dict[str, Cell]:
        """What is run, by what it is called. Where nothing is drawn more draws are none."""
        attack = subject.attack
        more = replace(attack, eot_samples=self.more_eot * attack.eot_samples)
        cells = {WHITE: Cell(WHITE, attack)}
        if subject.defense.stochastic:
            cells[MORE] = Cell(MORE, more)
            cells[BOTH] = Cell(BOTH, attack, ("forward", "reverse"))
        return cells

    def check(self, subject: Subject) -> None:
        try:
            self.cells(subject)
        except FieldError as error:  # of an attack that nobody wrote
            problem = f"times eot_samples {subject.attack.eot_samples}: {error.problem}"
            raise FieldError(self, "more_eot", problem) from None

    def work(self, subject: Subject) -> Work:
        return subject.work(self.cells(subject).values())

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`right`: by cell, on which report draws an image was classified as its label."""
        outcomes = subject.outcomes(block, self.cells(subject))
        found = {name: right(outcome) for name, outcome in outcomes.items()}
        for name in (MORE, BOTH):  # where nothing is drawn
            found.setdefault(name, found[WHITE])
        return [
            entry | {"right": {name: of_all[i] for name, of_all in found.items()}}
            for i, entry in enumerate(entries(subject, block))
        ]

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            found = {
                name: [record["right"][name] for record in of_row]
                for name in (CLEAN, WHITE, MORE, BOTH)
            }
            lines = [accuracy_line(Place(row, name), of_all) for name, of_all in found.items()]
            pairs = {GRADIENT: (WHITE, MORE), REPORT: (MORE, BOTH)}
            if of_row[0]["stochastic"]:
                shares = [
                    difference_line(Place(row, name), found[more], found[less])
                    for name, (more, less) in pairs.items()
                ]
            else:  # one attack, so nothing is uncertain
                shares = [Place(row, name).line(0.0, 0.0, 0.0, len(of_row)) for name in pairs]
            summary.lines.extend([*lines, *shares])
            gradient, report = map(_told, shares)
            white, left = (in_words(lines[k], 100, 1) for k in (1, 3))
            summary.finding.append(
                f"{row}: of {white}% under the white box, {gradient} points are gradient noise or"
                f" more, {report} are report noise or less, {left}% are left (n = {len(of_row)})"
            )
        return summary


def _told(share: Line) -> str:
    """A share in points, and whether it can be told from 0."""
    words = in_words(share, 100, 1)
    if share.low is None or share.high is None or not share.low <= 0 <= share.high:
        return words
    return words if share.low == share.high else f"{words} (cannot be told from 0)"
