"""Accuracy by what the attacker knows of the noise, by sampler and by number of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Line, Place, accuracy_line, difference_line, in_words
from hetpure.analysis.subject import Subject, Work, right
from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError
from hetpure.evaluation.protocol import CLEAN, Block, Cell
from hetpure.noise import Group
from hetpure.purifiers.purifier import GridPurifier
from hetpure.samplers import DDIM, DDPM, Sampler

WHITE, BOTH = "white box", "DW-both"
KNOWN: dict[str, tuple[Group, ...]] = {
    WHITE: (),
    "DW-forward": ("forward",),
    "DW-reverse": ("reverse",),
    BOTH: ("forward", "reverse"),
}
OWN = "as it is"


@dataclass(frozen=True)
class Knowledge(Analysis):
    """The first figure of the ADDT paper (ICLR 2025, arXiv 2404.14309): a row under an attacker who
    knows no noise, the forward noise, the reverse noise, or both. The row is looked at with its own
    sampler, and with DDPM and DDIM on the same network, each on its own grid and on others.

    Args:
        steps: grid points of the whole schedule, each another grid.
    """

    name: ClassVar[str] = "knowledge"

    steps: tuple[int, ...] = (5, 10)

    def __post_init__(self) -> None:
        if min(self.steps, default=1) < 1:
            raise FieldError(self, "steps", f"must be >= 1, got {self.steps}")

    def variants(self, subject: Subject) -> list[tuple[str, Subject]]:
        """The row with each sampler and each grid, by the sampler's name, from few network calls to
        many. Of grids with one plan there is one. A purifier without sampler or grid is taken as it
        is, and a guided one has its own sampler alone."""
        purifier = subject.defense.purifier
        if not isinstance(purifier, GridPurifier):
            return [(OWN, subject)]
        found: list[tuple[str, Subject]] = []
        for sampler in dict.fromkeys((purifier.sampler, DDPM(), DDIM())):
            try:  # a guided purifier, and the adjoint, have samplers of their own
                grids = [replace(purifier, sampler=sampler)]
                subject.purified_by(grids[0])
            except InputError:
                continue
            grids += [
                replace(grids[0], steps=steps, stride=None, timesteps=None) for steps in self.steps
            ]
            others = {other.defense.plan: other for other in map(subject.purified_by, grids)}
            by_calls = sorted(others.values(), key=lambda other: other.defense.network_calls)
            found += [(sampler_name(sampler), other) for other in by_calls]
        return found

    def check(self, subject: Subject) -> None:
        try:
            self.variants(subject)
        except FieldError as error:  # of a purifier that nobody wrote
            raise FieldError(self, "steps", error.problem) from None

    def work(self, subject: Subject) -> Work:
        return sum(
            (other.work(cells_of(other).values()) for _, other in self.variants(subject)), Work()
        )

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`variants`: of each its `sampler`, its network `calls`, the `groups` of noise that it
        draws, and `right`, by what was known: on which report draws an image was classified as its
        label."""
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
                        "groups": sorted(other.defense.groups),
                        "right": {setting: of_all[i] for setting, of_all in by_setting.items()},
                    }
                )
        return found

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        """Also what each attacker finds beyond the white box, paired by image; of one who knows
        nothing that is drawn, and so is the white box, nothing is said."""
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            for number, variant in enumerate(of_row[0]["variants"]):
                lines: dict[str, Line] = {}
                found = {
                    setting: [record["variants"][number]["right"][setting] for record in of_row]
                    for setting in (CLEAN, *KNOWN)
                }
                at = (variant["sampler"], variant["calls"])
                drawn = set(variant.get("groups", KNOWN[BOTH]))  # earlier records do not say
                for setting, of_all in found.items():
                    lines[setting] = accuracy_line(Place(row, setting, *at), of_all)
                beyond = [
                    difference_line(Place(row, less_than_white(setting), *at), found[WHITE], of_all)
                    for setting, of_all in found.items()
                    if drawn.intersection(KNOWN.get(setting, ()))
                ]
                summary.lines.extend([*lines.values(), *beyond])
                words = ", ".join(
                    f"{setting} {in_words(line, 100, 1)}%" for setting, line in lines.items()
                )
                for line in beyond[-1:]:
                    words += f"; {line.quantity} {in_words(line, 100, 1)} points"
                summary.finding.append(
                    f"{row}, {variant['sampler']}, {variant['calls']} network calls: {words}"
                    f" (n = {len(of_row)})"
                )
        return summary


def less_than_white(setting: str) -> str:
    """What the accuracy under the white box less the one in another setting is called."""
    return f"{WHITE} less {setting}"


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
