"""`report.html`: the page of a run to send to somebody, whole in one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetpure.evaluation.protocol import CLEAN, Record
from hetpure.evaluation.results import by_attack, estimate, outcomes, robust_records
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import Store
from hetpure.numbers import counted
from hetpure.report.advice import advice
from hetpure.report.charts import curves, strip
from hetpure.report.finding import by_defense, doubts, finding
from hetpure.report.gallery import choose, class_name, exhibits, without_images
from hetpure.report.gradient_checks import gradient_checks_sheet
from hetpure.report.html import render
from hetpure.report.lines import provenance_lines, state
from hetpure.report.sheet import Sheet
from hetpure.report.table import (
    ORDER,
    attacks_sheet,
    audit_sheet,
    costs_sheet,
    defenses_sheet,
    interval,
)

MOST_CLASSES = 200  # lines of the table of classes


@dataclass(frozen=True)
class Remark:
    """A check that did not pass: its verdict, what was found, and what to do."""

    check: str
    verdict: str
    said: str
    advice: str


@dataclass(frozen=True)
class Audited:
    """The audit of one defence in words: how many checks got each verdict, those that did not pass,
    and those that did."""

    name: str
    tally: str
    remarks: Sequence[Remark]
    passed: Sheet


def run_page(store: Store, results: Mapping[str, Any]) -> str:
    """The page of a run, finished or not, from its results and what else its folder holds."""
    contents = Contents.read(store)
    records = contents.records(complete=True)
    robust = by_defense(records)
    class_names = results["run"].get("class_names", [])  # earlier runs do not say
    defenses = results["defenses"]
    return render(
        "run.html",
        title=store.path.resolve().name,
        state=state(results),
        finding=finding(results, robust),
        doubts=doubts(results),
        strips=[
            strip(name, about["clean"]["single"], about["robust"]["single"], "robust")
            for name, about in defenses.items()
        ],
        # The doubts above say which rows were struck out, and why.
        sheets=[defenses_sheet({**results, "struck": {}}), attacks_sheet(results)],
        audited=audited(results),
        audit_note=audit_sheet(results).note,
        costs=costs_sheet(results),
        weaker=results["weaker_than_full"],
        gallery=exhibits(store, contents, choose(robust), class_names),
        gallery_note=without_images(list(robust)),
        curves=curves(results),
        classes=classes_sheet(records, class_names),
        gradient_checks=gradient_checks_sheet(defenses, "Gradient checks"),
        provenance=provenance_lines(results["provenance"]),
        config=results["config"],
    )


def audited(results: Mapping[str, Any]) -> list[Audited]:
    """Of every defence that was audited."""
    found = []
    for name, defense in results["defenses"].items():
        checks = defense["audit"] or []
        if not checks:
            continue
        counts = [(sum(c["verdict"] == verdict for c in checks), verdict) for verdict in ORDER]
        remarks = [
            Remark(c["name"], verdict, c["said"], advice(c["name"], verdict))
            for verdict in ORDER
            for c in checks
            if c["verdict"] == verdict != "PASS"
        ]
        passed = [(c["name"], c["said"]) for c in checks if c["verdict"] == "PASS"]
        found.append(
            Audited(
                name,
                ", ".join(f"{count} {verdict}" for count, verdict in counts if count),
                remarks,
                Sheet(f"{name}: checks that passed", ("check", "finding"), passed, left=2),
            )
        )
    return found


def classes_sheet(records: Sequence[Record], class_names: Sequence[str]) -> Sheet:
    """By defence and class, the share of its images that the majority of report draws has right,
    without attack and under the per-sample worst, with Wilson's intervals."""
    rows = []
    for name in dict.fromkeys(record.defense for record in records):
        of_row = [record for record in records if record.defense == name]
        clean, robust = by_attack(of_row)[CLEAN], robust_records(of_row)
        for label in sorted({record.label for record in clean}):
            parts = [[r for r in part if r.label == label] for part in (clean, robust)]
            shares = [interval(_vote(part)) for part in parts]
            rows.append((name, class_name(class_names, label), str(len(parts[0])), *shares))
    note = "Right on the majority of report draws, a tie is wrong; 95% intervals by Wilson."
    if len(rows) > MOST_CLASSES:
        note += f" The first {MOST_CLASSES} of {counted(len(rows), 'line')}."
    heads = ("defence", "class", "n", "clean vote", "robust vote")
    return Sheet("Accuracy by class, %", heads, rows[:MOST_CLASSES], note, left=2)


def _vote(records: Sequence[Record]) -> dict[str, Any]:
    draws = len(records[0].predictions)
    return estimate(outcomes(records, "vote"), draws).as_dict()
