"""The results of a run: a function of its store, and of nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

from hetpure.attacks import Threat
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.audit import Audit, Check, Course, saved_check, verdicts
from hetpure.evaluation.protocol import AUDIT, CLEAN, Record
from hetpure.evaluation.results import by_attack, summarise
from hetpure.evaluation.store import (
    CONFIG,
    RECORDS,
    RESULTS,
    RUN,
    SCHEMA,
    Finished,
    Job,
    Store,
    json_bytes,
)

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """What a store holds of a run.

    Args:
        run: what the run wrote when it began.
        jobs: all of the run's jobs; of an audit those that are done, and the next one where it is
            not at its end.
        finished: what those that are done left.
        checks: of the rows' gradients, as far as they are checked.
        struck: the rows that are not evaluated any more, and why.
    """

    run: dict[str, Any]
    jobs: Sequence[Job]
    finished: Mapping[Job, Finished]
    checks: Mapping[str, dict[str, Any]]
    struck: Mapping[str, str]

    @classmethod
    def read(cls, store: Store) -> "Contents":
        """InputError where no run of this version is there, or a file of it is damaged."""
        run = store.read_run()
        if run is None or "facts" not in run:  # it is taken by something else
            raise InputError(f"{store.path} holds no evaluation")
        try:
            facts, size, rows = run["facts"], run["block"], run["facts"]["rows"]
            jobs = [
                Job(name, cell, block)
                for block in range(ceil(facts["images"] / size))
                for name, row in rows.items()
                for cell, about in row["cells"].items()
                if block * size < about["images"]
            ]
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"{store.path / RUN} is damaged ({why}): restore it") from None
        finished = {job: store.get(job) for job in jobs if store.has(job)}
        for name in rows:
            for job in _audit_jobs(store, run, name, jobs, finished):
                jobs.append(job)
                if store.has(job):
                    finished[job] = store.get(job)
        checks = {name: check for name in rows if (check := store.get_check(name))}
        struck = {name: reason for name in rows if (reason := store.struck(name))}
        return cls(run, jobs, finished, checks, struck)

    @property
    def facts(self) -> Facts:
        """What the run says of itself."""
        return dict(self.run["facts"])

    @property
    def missing(self) -> int:
        """How many jobs, and checks of gradients, are still to be done."""
        jobs = [job for job in self.jobs if job not in self.finished and job.row not in self.struck]
        return len(jobs) + len(self.facts["rows"].keys() - self.checks.keys() - self.struck.keys())

    def records(self, *, complete: bool = False) -> list[Record]:
        """Those of all rows that are not struck out; of `complete` blocks alone, which have all the
        row's cells, but for the audit's. Their order does not tell who computed them."""
        main = [job for job in self.jobs if not job.attack.startswith(AUDIT)]
        ready = {(job.row, job.block) for job in main}
        if complete:
            ready -= {(job.row, job.block) for job in main if job not in self.finished}
        samples = {
            (job.row, record.sample)
            for job in main
            if job in self.finished and (job.row, job.block) in ready
            for record in self.finished[job].records
        }
        cells = [(job.row, job.attack) for job in self.jobs]
        place = {cell: number for number, cell in enumerate(dict.fromkeys(cells))}
        records = [
            record
            for job, finished in self.finished.items()
            if job.row not in self.struck
            for record in finished.records
            if (job.row, record.sample) in samples
        ]
        return sorted(records, key=lambda r: (r.sample, place[r.defense, r.attack]))


def _audit_jobs(
    store: Store,
    run: Mapping[str, Any],
    name: str,
    jobs: Sequence[Job],
    finished: Mapping[Job, Finished],
) -> list[Job]:
    """The jobs of a row's audit that are done, one after another, and the next one unless the audit
    is at its end."""
    facts = run["facts"]
    row, of_audit = facts["rows"][name], []
    if facts["run"]["audit"] is None:
        return []
    before: dict[str, list[Record]] = {}
    for job in jobs:
        if job.row == name and job.attack in (CLEAN, row["base"]) and job in finished:
            before.setdefault(job.attack, []).extend(finished[job].records)
    course = Course(
        {cell: about["purifications"] for cell, about in row["audit"].items()},
        Audit(**facts["run"]["audit"]),
        facts["images"],
        run["block"],
        before,
        row["base"],
        row["classes"],
    )
    while (look := course.next()) is not None:
        cell, number, places = look
        job = Job(name, cell, number)
        of_audit.append(job)
        if not store.has(job):
            break
        course.add(cell, places, store.get(job).records)
    return of_audit


def write_results(store: Store) -> dict[str, Any]:
    """Computes the results of a run, finished or not, and writes them and the records that they are
    made of."""
    contents = Contents.read(store)
    results = run_results(store, contents)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in contents.records())
    write_whole(store.path / RECORDS, lines.encode())
    write_whole(store.path / RESULTS, json_bytes(results))
    return results


def run_results(store: Store, contents: Contents) -> dict[str, Any]:
    """All of `results.json`. Of an unfinished run it holds what is complete: each row on the
    blocks that all its cells have."""
    facts, measured = contents.facts, store.measured()
    records = contents.records(complete=True)
    rows = {name: [r for r in records if r.defense == name] for name in facts["rows"]}
    rows = {name: of_row for name, of_row in rows.items() if of_row}
    samples = {name: {record.sample for record in of_row} for name, of_row in rows.items()}
    baseline = facts["run"]["baseline"]
    if any(samples[name] != samples.get(baseline) for name in rows):
        baseline = None  # an unfinished run: rows have other images, nothing can be paired
    defenses = summarise(records, baseline)
    agreements, traces = eot_agreements(contents), iterations(contents)
    for name, summary in defenses.items():
        row, check = facts["rows"][name], contents.checks.get(name, {})
        summary["purification_calls"] = row["purification_calls"]
        summary |= check.get("gradient_checks", {})
        summary["execution"] = contents.run["execution"][name]
        for attack, about in summary["attacks"].items():
            about["eot_agreement"] = agreements.get((name, attack))
            about["iterations"] = traces.get((name, attack))
        right = traces.get((name, row["base"]), {}).get("right", [])
        summary["audit"] = _audit(store, facts, name, rows[name], check, agreements, right)
        saved = [saved_calls(of_attack) for of_attack in by_attack(rows[name]).values()]
        summary["cost"] = {
            "saved_calls": sum(saved),
            "network_calls": summary.pop("network_calls"),
            "audit_calls": summary.pop("audit_calls"),
            "seconds": sum(
                finished.seconds for job, finished in contents.finished.items() if job.row == name
            ),
            "latency_seconds": measured.get("latency", {}).get(name),
        }
    config = store.path / CONFIG  # a notebook writes none
    commits = sorted({str(finished.commit) for finished in contents.finished.values()})
    return {
        "schema": SCHEMA,
        "samples": max((len(of_row) for of_row in samples.values()), default=0),
        "run": {**facts["run"], "baseline": baseline},
        "missing": contents.missing,
        "struck": contents.struck,
        "defenses": defenses,
        "notes": facts["notes"],
        "weaker_than_full": [
            *facts["weaker_than_full"],
            *(
                line
                for name in defenses
                for line in inexact(name, facts["rows"][name], defenses[name])
            ),
        ],
        "cost": {
            "peak_memory_bytes": measured.get("peak_memory_bytes", 0),
            "gradient_check_seconds": sum(check["seconds"] for check in contents.checks.values()),
        },
        "provenance": contents.run["provenance"] | {"commits of blocks": commits},
        "config": config.read_text("utf-8", "replace") if config.is_file() else None,
    }


def saved_calls(records: Sequence[Record]) -> int:
    """Network calls that a cascade saved under one attack: what it spent on an image that it looked
    for, for each that it skipped."""
    spent = [record.network_calls for record in records if not record.skipped]
    skipped = len(records) - len(spent)
    return round(skipped * sum(spent) / len(spent)) if spent else 0


def inexact(name: str, row: Facts, checks: Mapping[str, Any]) -> list[str]:
    """Where the gradient of a row's attack is not that of the defence, or not all of it was
    checked, given its gradient checks."""
    check = checks.get(row["attacked"])
    if check is None:
        return [f"{name}: its gradient has no check"]
    cosine = f"cosine {check['cosine_to_exact']:.3f} to the exact one"
    lines = [f"{name}: {line} {cosine}" for line in row["inexact"]]
    steps, of_steps = check.get("steps"), check.get("of_steps")
    if steps != of_steps:
        lines.append(f"{name}: its gradient is checked on {steps} of {of_steps} steps")
    return lines


def eot_agreements(contents: Contents) -> dict[tuple[str, str], float]:
    """By row and attack, the mean cosine between the gradients of both halves of the EOT draws,
    over images and iterations."""
    cosines: dict[tuple[str, str], list[float]] = {}
    for job, finished in contents.finished.items():
        values = [entry["agreement"] for entry in finished.iterations if "agreement" in entry]
        if values:
            cosines.setdefault((job.row, job.attack), []).extend(values)
    return {key: float(np.mean(values)) for key, values in cosines.items()}


def iterations(contents: Contents) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By row and attack, the mean `loss` and the mean share that is `right` of the iterates of each
    iteration, over images and runs; iterations that tell neither are left out."""
    sums: dict[tuple[str, str], dict[str, dict[int, list[tuple[float, int]]]]] = {}
    for job, finished in contents.finished.items():
        of_attack = sums.setdefault((job.row, job.attack), {"loss": {}, "right": {}})
        for entry in finished.iterations:
            for name, values in of_attack.items():
                if name in entry:
                    weighted = (entry[name], sum(not r.skipped for r in finished.records))
                    values.setdefault(int(entry["iteration"]), []).append(weighted)
    return {
        key: {
            name: [
                sum(value * count for value, count in values[k]) / sum(n for _, n in values[k])
                for k in sorted(values)
            ]
            for name, values in of_attack.items()
        }
        for key, of_attack in sums.items()
        if any(of_attack.values())
    }


def _audit(
    store: Store,
    facts: Facts,
    name: str,
    records: Sequence[Record],
    check: Mapping[str, Any],
    agreements: Mapping[tuple[str, str], float],
    right: Sequence[float],
) -> list[dict[str, Any]] | None:
    if facts["run"]["audit"] is None:
        return None
    row = facts["rows"][name]
    checks = verdicts(
        records,
        row["base"],
        row["classes"],
        Audit(**facts["run"]["audit"]),
        list(check.get("gradient_checks", {}).values()),
        agreements.get((name, row["base"])),
        right,
    )
    done = by_attack(records)  # of an unfinished row perhaps not the cells of the first images
    saved = {
        cell: (store.images(name, cell), Threat(**about["threat"]) if about["threat"] else None)
        for cell, about in (row["cells"] | row["audit"]).items()
        if cell != CLEAN and cell in done
    }
    if without := [cell.removeprefix(f"{AUDIT}: ") for cell in row["audit"] if cell not in done]:
        names = ", ".join(without)
        checks.append(Check("budget", "undecided", f"not looked at, for want of room: {names}"))
    checks.append(saved_check(store.images(name, CLEAN), saved))
    before = [check["gradient"], *check["sameness"]] if check else []
    return [*before, *(asdict(line) for line in checks)]
