"""Runs that are read: those of this version from their stores, earlier ones from their records."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import RECORDS, RESULTS, RUN, Store

FIELDS = {field.name for field in fields(Record)}
UNTOLD: dict[str, Any] = {"threat": None, "known": []}  # what the earliest records do not say


def read_records(run: Path) -> list[Record]:
    """The records of a run, finished or not: of its store, or the lines of `records*.jsonl` that a
    run of an earlier version wrote, one file a process. InputError where there are none."""
    here = (run / RUN).exists()
    records = Contents.read(Store(run)).records() if here else _earlier(run)
    if not records:
        raise InputError(f"RUN {run}: it holds no record yet")
    return records


def description_of(run: Path) -> dict[str, Any] | None:
    """What a finished run says of itself, its `run` in words and its `provenance`; None of one that
    has not ended."""
    if (run / RUN).exists():
        contents = Contents.read(Store(run))
        ended = not contents.missing
        about = {"run": contents.facts["run"], "provenance": contents.run["provenance"]}
        return about if ended else None
    try:
        results = json.loads((run / RESULTS).read_text())
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) else None


def earlier_results(run: Path) -> dict[str, Any]:
    """What the records of a run of an earlier version say, as `results.json` has it. Its gradient
    checks, audit and costs are in its own report."""
    records = _earlier(run)
    path = run / RESULTS
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    about = before.get("run", {"data": run.name, "attack": "", "attacks": {}, "baseline": None})
    draws = max(len(record.predictions) for record in records)
    chosen_on = max(max(record.selection) for record in records)
    defenses = summarise(records, about.get("baseline"))
    for name, summary in defenses.items():
        known = before.get("defenses", {}).get(name, {})
        summary["purification_calls"] = known.get("purification_calls", "-")
        summary["audit"] = known.get("audit")
        for attack, accuracy in summary["attacks"].items():
            known_attack = known.get("attacks", {}).get(attack, {})
            accuracy["eot_agreement"] = known_attack.get("eot_agreement")
    return {
        "schema": before.get("schema", 3),
        "samples": len({record.sample for record in records}),
        "run": {"report_draws": draws, "selection_draws": chosen_on, "audit": None, **about},
        "missing": 0,
        "struck": {},
        "defenses": defenses,
        "notes": before.get("notes", []),
        "weaker_than_full": before.get("weaker_than_full", []),
    }


def _earlier(run: Path) -> list[Record]:
    paths = sorted(run.glob("records*.jsonl"))
    if not paths:
        raise InputError(
            f"RUN {run}: there is no {RUN} and no {RECORDS} in it; a run is a folder that"
            " evaluate.py wrote"
        )
    records: dict[tuple[str, str, int], Record] = {}
    for path in paths:
        text = path.read_text()
        # The last line may be torn: those runs wrote line by line.
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
            try:
                entry = json.loads(line)
                record = Record(**UNTOLD | {k: v for k, v in entry.items() if k in FIELDS})
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}, is no record: {error}") from None
            key = record.defense, record.attack, record.sample
            if records.setdefault(key, record) != record:
                raise InputError(
                    f"{path}, line {number}: {record.defense}, {record.attack}: sample"
                    f" {record.sample} is there twice, differently"
                )
    order = {name: place for place, name in enumerate(dict.fromkeys(k[:2] for k in records))}
    return sorted(records.values(), key=lambda r: (r.sample, order[r.defense, r.attack]))
