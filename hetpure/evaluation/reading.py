"""Runs that are read: those of this version from their stores, earlier ones from their records."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record, parsed
from hetpure.evaluation.results import summarise
from hetpure.evaluation.run_results import Contents, run_results
from hetpure.evaluation.store import RECORDS, RESULTS, RUN, Store

FIELDS = {field.name for field in fields(Record)}
DEFAULTS: dict[str, Any] = {"threat": None, "known": []}  # which the earliest records lack


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder holds it.

    Args:
        name: of the run.
        records: of all rows that are not struck out.
        about: the run in words (`run`), its `provenance`, and which rows are `struck` out; empty
            for a run of an earlier version that did not come to its end.
        finished: whether all of it is computed.
    """

    name: str
    records: list[Record]
    about: dict[str, Any]
    finished: bool


def read_run(path: Path) -> RecordedRun:
    """A run in its folder, finished or not. InputError where there are no records: neither a store
    nor lines of `records*.jsonl`, as earlier versions wrote them, one file a process."""
    if (path / RUN).exists():
        contents = Contents.read(Store(path))
        about = {
            "run": contents.facts["run"],
            "provenance": contents.run["provenance"],
            "struck": contents.struck,
        }
        run = RecordedRun(path.name, contents.records(), about, not contents.missing)
    else:
        files = sorted(path.glob("records*.jsonl"))
        if not files:
            raise InputError(
                f"RUN {path}: there is no {RUN} and no {RECORDS} in it; a run is a folder that"
                " hetpure evaluate wrote"
            )
        records = parse_records({str(file): file.read_text("utf-8", "replace") for file in files})
        about = _earlier_results(path)
        run = RecordedRun(path.name, records, about, bool(about))
    if not run.records:
        raise InputError(f"RUN {path}: it holds no record yet")
    return run


def parse_records(files: Mapping[str, str]) -> list[Record]:
    """The records of files by their name and text, each once, by sample. A torn last line is left
    out: those runs wrote line by line. InputError for any other line that is no record."""
    records: dict[tuple[str, str, int], Record] = {}
    for name, text in files.items():
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
            try:
                content = DEFAULTS | {k: v for k, v in json.loads(line).items() if k in FIELDS}
                record = parsed(content)
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{name}, line {number}, is no record: {error}") from None
            key = record.defense, record.attack, record.sample
            if records.setdefault(key, record) != record:
                raise InputError(
                    f"{name}, line {number}: {record.defense}, {record.attack}: sample"
                    f" {record.sample} is there twice, differently"
                )
    cells = dict.fromkeys((defense, attack) for defense, attack, _ in records)
    order = {cell: place for place, cell in enumerate(cells)}
    return sorted(records.values(), key=lambda r: (r.sample, order[r.defense, r.attack]))


def earlier_results(path: Path) -> dict[str, Any]:
    """What the records of a run of an earlier version say, as `results.json` has it. Its gradient
    checks, audit and costs are in its own report."""
    records, before = read_run(path).records, _earlier_results(path)
    about = before.get("run", {"data": path.name, "attack": "", "attacks": {}, "baseline": None})
    defenses = summarise(records, about.get("baseline"))
    for name, summary in defenses.items():
        known = before.get("defenses", {}).get(name, {})
        summary["purification_calls"] = known.get("purification_calls", "-")
        summary["audit"] = known.get("audit")
        for attack, accuracy in summary["attacks"].items():
            known_attack = known.get("attacks", {}).get(attack, {})
            accuracy["eot_agreement"] = known_attack.get("eot_agreement")
    return {
        "samples": len({record.sample for record in records}),
        "run": {
            "report_draws": max(len(record.predictions) for record in records),
            "selection_draws": max(max(record.selection) for record in records),
            "audit": None,
            **about,
        },
        "missing": 0,
        "struck": {},
        "defenses": defenses,
        "notes": before.get("notes", []),
        "weaker_than_full": before.get("weaker_than_full", []),
    }


def read_results(path: Path) -> dict[str, Any]:
    """What `results.json` says of a run. It is computed, and not written, where the run is not
    finished or the file is not there; of an earlier version from its records."""
    if not (path / RUN).exists():
        return earlier_results(path)
    store = Store(path)
    contents = Contents.read(store)
    recorded = {} if contents.missing else _earlier_results(path)
    return recorded or run_results(store, contents)


def _earlier_results(path: Path) -> dict[str, Any]:
    """Empty where the run was not finished, or was killed while it wrote them."""
    try:
        results = json.loads((path / RESULTS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}
