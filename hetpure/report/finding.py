"""The finding of a run in one sentence, by rule from its results, and what to doubt about it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import paired, robust_records
from hetpure.evaluation.statistics import in_points
from hetpure.numbers import counted
from hetpure.report.table import interval

WIDE = 0.3  # an interval that no finding can stand on
Robust = Mapping[str, Sequence[Record]]


def by_defense(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of a run that are shown as `robust`, by defence."""
    names = dict.fromkeys(record.defense for record in records)
    return {name: robust_records([r for r in records if r.defense == name]) for name in names}


def finding(results: Mapping[str, Any], robust: Robust) -> str:
    """One sentence. The defence with the highest robust accuracy is named, and whether the next one
    can be told from it: by the paired 95% interval of their difference."""
    ordered = _ordered(results)
    if not ordered:
        return "No defence has a result yet."
    best, *others = ordered
    about = results["defenses"][best]
    single, clean = about["robust"]["single"], about["clean"]["single"]
    attacked = f"{_percent(single)} of {counted(single['n'], 'image')}"
    unattacked = f"without attack on {_percent(clean)}"
    if not others:
        return f"Under attack {best} is right on {attacked}, {unattacked}."
    sentence = (
        f"Of {len(ordered)} defences {best} is right most often under attack: on {attacked}"
        f" ({unattacked})"
    )
    second = others[0]
    if not {r.sample for r in robust[best]} & {r.sample for r in robust[second]}:
        return f"{sentence}; it has no image in common with {second}, the next one."
    difference = paired(robust[best], robust[second]).as_dict()
    points = f"{in_points(difference)} points under attack"
    if difference["low"] > 0:
        return f"{sentence}; that is {points} above {second}, the next one."
    return f"{sentence}; {second}, the next one, cannot be told from it ({points})."


def _percent(estimate: Mapping[str, Any]) -> str:
    """As `62.5% [45, 78]`."""
    return interval(estimate).replace(" ", "% ", 1)


def doubts(results: Mapping[str, Any]) -> list[str]:
    """What speaks against the finding, a sentence each, the gravest first."""
    ordered = _ordered(results)
    lines = [
        f"{name} was struck out and has no numbers: {reason}."
        for name, reason in results["struck"].items()
    ]
    if not ordered:
        return lines
    best = ordered[0]
    about = results["defenses"][best]
    verdicts = [check["verdict"] for check in about["audit"] or []]
    for verdict, meaning in (
        ("FAIL", "its number is not to be believed before that is mended"),
        ("WARN", "its number may be too high"),
    ):
        if count := verdicts.count(verdict):
            lines.append(f"The audit of {best} has {count} {verdict}: {meaning}.")
    if count := verdicts.count("undecided"):
        checks = counted(len(verdicts), "check")
        lines.append(
            f"{count} of {checks} of {best} are undecided: more images would have to tell."
        )
    if not verdicts:
        lines.append(f"{best} was not audited: nothing says that the attack works.")
    single = about["robust"]["single"]
    width = single["high"] - single["low"]
    if width > WIDE:
        lines.append(
            f"The interval is {100 * width:.0f} points wide: {counted(single['n'], 'image')} are"
            " too few for a finding."
            if single["n"] != 1
            else f"The interval is {100 * width:.0f} points wide: 1 image is no finding."
        )
    if weaker := len(results["weaker_than_full"]):
        points = counted(weaker, "point")
        lines.append(
            f"The run is weaker than the full protocol in {points}: a full attack may leave less"
            " accuracy."
        )
    if len(ordered) > 1:
        lines.append("The highest of several numbers flatters: confirm it on other images.")
    return lines


def _ordered(results: Mapping[str, Any]) -> list[str]:
    """The defences, the most accurate under attack first."""
    defenses = results["defenses"]
    return sorted(defenses, key=lambda name: -defenses[name]["robust"]["single"]["accuracy"])
