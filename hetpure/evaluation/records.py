"""A run's folder: append-only records, timings kept apart from them, and results."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record

RECORDS, TIMING, RESULTS, CONFIG = "records.jsonl", "timing.jsonl", "results.json", "config.yaml"
ITERATIONS, SESSIONS = "iterations.jsonl", "sessions.jsonl"


class RunFolder:
    """Where one evaluation writes. Seconds go to `timing.jsonl`, so that the records of two runs
    can be compared byte by byte."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append_records(self, records: Iterable[Record]) -> None:
        """Appends the lines of a block under one attack, flushed to the disk."""
        self._append(RECORDS, [record.as_dict() for record in records])

    def append_timing(self, entry: dict[str, Any]) -> None:
        self._append(TIMING, [entry])

    def append_iterations(self, entry: dict[str, Any]) -> None:
        """What an attack's iterations on one block said of themselves."""
        self._append(ITERATIONS, [entry])

    def write_results(self, results: dict[str, Any]) -> None:
        (self.path / RESULTS).write_text(json.dumps(results, indent=2) + "\n")

    def read_records(self) -> list[Record]:
        """Every record written so far, one a sample and attack: a block that was computed anew
        after a stop gives the same again."""
        records = [Record(**entry) for entry in self._read(RECORDS)]
        return list({(r.defense, r.attack, r.sample): r for r in records}.values())

    def read_timing(self) -> list[dict[str, Any]]:
        return self._read(TIMING)

    def read_iterations(self) -> list[dict[str, Any]]:
        """One entry a defence, attack and block, the last one written."""
        entries = self._read(ITERATIONS)
        return list({(e["defense"], e["attack"], e["block"]): e for e in entries}.values())

    def append_session(self, provenance: dict[str, Any]) -> None:
        """A start of the run: the first one, or one that goes on."""
        self._append(SESSIONS, [provenance])

    def read_sessions(self) -> list[dict[str, Any]]:
        return self._read(SESSIONS)

    def finished(self) -> dict[tuple[str, str], dict[int, int]]:
        """By defence and attack, the samples with a record, and on how many selection draws the
        defence was right on what it reports. A last line that a stopped run left torn is
        cut off; a sample whose line it was is computed anew with its block."""
        for path in self.path.glob("*.jsonl"):  # the next line would be glued to a torn one
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        found: dict[tuple[str, str], dict[int, int]] = {}
        for record in self.read_records():
            found.setdefault((record.defense, record.attack), {})[record.sample] = record.kept
        return found

    def _append(self, name: str, entries: list[dict[str, Any]]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        return read_lines(path) if path.exists() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of JSON lines. A last line that a killed run left torn is no entry."""
    text = path.read_text()
    found = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            raise InputError(f"{path}, line {number}, is no JSON: restore the file") from None
    return found
