"""Accuracy by what the attacker knows of the noise, by sampler and by number of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Line, Place, accuracy_line, in_words
from hetpure.analysis.subject import Subject, Work, right
from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError
from hetpure.evaluation.protocol import CLEAN, Block, Cell
from hetpure.noise import Group
from hetpure.purifiers.purifier import GridPurifier
from hetpure.samplers import DDIM, DDPM, Sampler

KNOWN: dict[str, tuple[Group, ...]] = {
    "white box": (),
    "DW-forward": ("forward",),
    "DW-reverse": ("reverse",),
    "DW-both": ("forward", "reverse"),
}
OWN = "as it is"


@dataclass(frozen=True)
class Knowledge(Analysis):
    """The first figure of the ADDT paper (ICLR 2025, arXiv 2404.14309): a row under an attacker who
    knows no noise, the forward noise, the reverse noise, or both. The row is looked at with its own
    sampler, and with DDPM and DDIM on the same network, each on several grids.

    Args:
        steps: grid points of the whole schedule, each a variant of the purifier.
    """

    name: ClassVar[str] = "knowledge"

    steps: tuple[int, ...] = (10, 20, 40)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise FieldError(self, "steps", f"must be some numbers >= 1, got {self.steps}")

    def variants(self, subject: Subject) -> list[tuple[str, Subject]]:
        """The row with each sampler and each grid, by the sampler's name. A grid that has the same
        plan as an earlier one is left out. A purifier without sampler or grid is taken as it is."""
        purifier = subject.defense.purifier
        if not isinstance(purifier, GridPurifier):
            return [(OWN, subject)]
        found: dict[tuple[str, object], Subject] = {}
        for sampler in dict.fromkeys((purifier.sampler, DDPM(), DDIM())):
            for steps in self.steps:
                try:
                    other = subject.purified_by(
                        replace(purifier, sampler=sampler, steps=steps, stride=None, timesteps=None)
                    )
                except InputError:  # a guided purifier takes DDPM alone
                    continue
                found.setdefault((sampler_name(sampler), other.defense.plan), other)
        if not found:
            raise InputError(f"{subject.name}: none of the steps {self.steps} makes a grid")
        return [(name, other) for (name, _), other in found.items()]

    def check(self, subject: Subject) -> None:
        self.variants(subject)

    def work(self, subject: Subject) -> Work:
        return sum(
            (other.work(cells_of(other).values()) for _, other in self.variants(subject)), Work()
        )

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`variants`: of each its `sampler`, its network `calls`, and `right`, by what was known:
        on which report draws an image was classified as its label."""
        found = entries(subject, block)
        for record in found:
            record["variants"] = []
        for name, other in self.variants(subject):
            outcomes = other.outcomes(block, cells_of(other))
            by_setting = {CLEAN: right(outcomes[CLEAN])} | {
                setting: right(outcomes[cell_name(known_of(other.defense, groups))])
                for setting, groups in KNOWN.items()
            }
            for i, record in enumerate(found):
                record["variants"].append(
                    {
                        "sampler": name,
                        "calls": other.defense.network_calls,
                        "right": {setting: of_all[i] for setting, of_all in by_setting.items()},
                    }
                )
        return found

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            for number, variant in enumerate(of_row[0]["variants"]):
                lines: dict[str, Line] = {}
                for setting in (CLEAN, *KNOWN):
                    found = [record["variants"][number]["right"][setting] for record in of_row]
                    place = Place(row, setting, variant["sampler"], variant["calls"])
                    lines[setting] = accuracy_line(place, found)
                summary.lines.extend(lines.values())
                words = ", ".join(
                    f"{setting} {in_words(line, 100, 1)}%" for setting, line in lines.items()
                )
                summary.finding.append(
                    f"{row}, {variant['sampler']}, {variant['calls']} network calls: {words}"
                    f" (n = {len(of_row)})"
                )
        return summary


def known_of(defense: Defense, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Of these groups those that the defence draws: to know the others is to know nothing."""
    return tuple(group for group in groups if group in defense.groups)


def cell_name(known: tuple[Group, ...]) -> str:
    """Of the attack by someone who knows these groups."""
    return ", ".join(("knowledge", *known))


def cells_of(subject: Subject) -> dict[str, Cell]:
    """The attack by everyone who knows something else of the noise that the row draws."""
    known = {known_of(subject.defense, groups) for groups in KNOWN.values()}
    return {
        cell_name(groups): Cell(cell_name(groups), subject.attack, groups)
        for groups in sorted(known)
    }


def sampler_name(sampler: Sampler) -> str:
    """The class, and what is not set as by default."""
    usual = type(sampler)()
    changed = [
        f"{field.name} {getattr(sampler, field.name)}"
        for field in fields(sampler)
        if getattr(sampler, field.name) != getattr(usual, field.name)
    ]
    return ", ".join([type(sampler).__name__, *changed])
