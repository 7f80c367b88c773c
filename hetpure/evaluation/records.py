"""A run's folder: append-only records, timings kept apart from them, and results.

Every process of a run appends to files of its own; reading merges them.
"""

import errno
import fcntl
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hetpure.disk import make_folder, sync, write_whole
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record
from hetpure.saved_images import saved_block

RECORDS, TIMING, RESULTS, CONFIG = "records.jsonl", "timing.jsonl", "results.json", "config.yaml"
ITERATIONS, SESSIONS, GRADIENT_CHECKS = (
    "iterations.jsonl",
    "sessions.jsonl",
    "gradient_checks.jsonl",
)
JOURNALS = (RECORDS, TIMING, ITERATIONS, SESSIONS, GRADIENT_CHECKS)
FACTS, LOCK = "evaluation.json", "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunFolder:
    """Where one evaluation writes. Seconds go to `timing.jsonl`, so that the records of two runs
    can be compared byte by byte.

    Args:
        path: the folder; it is made with the first line.
        process: number of the process that writes. The first one's files have the plain names,
            those of others their number: `records.1.jsonl`.
    """

    def __init__(self, path: Path, process: int = 0) -> None:
        self.path = path
        self.process = process

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the system takes the lock away when the process ends,
        however it does. InputError where another evaluation, or what is left of one, writes there.
        The first process, once it holds its own, asks for all others: none is taken by then but by
        what is left of an earlier run."""
        make_folder(self.path)
        own = self.path / _of_process(LOCK, self.process)
        with own.open("a") as file:
            _lock(file.fileno(), self.path)
            others = self.path.glob(f"{LOCK}.*") if self.process == 0 else ()
            for path in others:
                with path.open("a") as other:
                    _lock(other.fileno(), self.path)
            yield

    def append_records(self, records: Iterable[Record]) -> None:
        """Appends the lines of a block under one attack, flushed to the disk."""
        self._append(RECORDS, [record.as_dict() for record in records])

    def append_timing(self, entry: dict[str, Any]) -> None:
        self._append(TIMING, [entry])

    def append_iterations(self, entry: dict[str, Any]) -> None:
        """What an attack's iterations on one block said of themselves."""
        self._append(ITERATIONS, [entry])

    def append_gradient_checks(self, entry: dict[str, Any]) -> None:
        """What a `row`'s gradient was found to be: its `gradient checks` and the `gradient` check."""
        self._append(GRADIENT_CHECKS, [entry])

    def append_session(self, provenance: dict[str, Any]) -> None:
        """A start of the run: the first one, or one that goes on."""
        self._append(SESSIONS, [provenance])

    def write_config(self, config: str) -> None:
        """The complete config, YAML."""
        write_whole(self.path / CONFIG, config.encode())

    def write_facts(self, facts: dict[str, Any]) -> None:
        """What the results need and records do not say; the same at every start of the run."""
        write_whole(self.path / FACTS, _json(facts))

    def write_results(self, results: dict[str, Any]) -> None:
        write_whole(self.path / RESULTS, _json(results))

    def read_records(self) -> list[Record]:
        """Every record written so far, one a sample and attack: a block that was computed anew
        after a stop gives the same again."""
        records = [Record(**entry) for entry in self.read_entries()]
        return list({(r.defense, r.attack, r.sample): r for r in records}.values())

    def read_entries(self) -> list[dict[str, Any]]:
        """The records as they were written, in an order that does not tell who computed them."""
        rows = self.read_facts().get("rows", {})
        cells = [(row, cell) for row, about in rows.items() for cell in about["cells"]]
        place = {cell: number for number, cell in enumerate(cells)}
        return sorted(
            self._read(RECORDS),
            key=lambda e: (e["sample"], place.get((e["defense"], e["attack"]), len(place))),
        )

    def read_timing(self) -> list[dict[str, Any]]:
        return self._read(TIMING)

    def read_iterations(self) -> list[dict[str, Any]]:
        """One entry a defence, attack and block, the last one written."""
        entries = self._read(ITERATIONS)
        return list({(e["defense"], e["attack"], e["block"]): e for e in entries}.values())

    def read_gradient_checks(self) -> dict[str, dict[str, Any]]:
        """By row, the last one written."""
        return {entry["row"]: entry for entry in self._read(GRADIENT_CHECKS)}

    def read_sessions(self) -> list[dict[str, Any]]:
        return self._read(SESSIONS)

    def read_facts(self) -> dict[str, Any]:
        """Empty where none were written."""
        path = self.path / FACTS
        facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return facts

    def recover(self) -> None:
        """Cuts off what a stopped run left half written: a torn last line, to which the next one
        would be glued, and of records the block that it belongs to or that lacks lines. That block
        will be computed anew, perhaps by another process, and an accelerator need not repeat it
        bit for bit. Which samples are one block the saved images tell, which are written first."""
        for path in itertools.chain.from_iterable(map(self._paths, JOURNALS)):
            *lines, torn = path.read_bytes().split(b"\n")
            if path.name.startswith("records."):
                lines = lines[: len(lines) - self._unfinished(lines)]
            size = sum(len(line) + 1 for line in lines)
            if torn or size < path.stat().st_size:
                os.truncate(path, size)

    def _unfinished(self, lines: list[bytes]) -> int:
        """How many of the last lines of a file of records are a part of a block."""
        found: set[int] = set()
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # reading will name it
            own = entry["defense"], entry["attack"]
            if not found:
                cell, block = own, saved_block(self.path, *own, entry["sample"])
            if own != cell or entry["sample"] not in block - found:
                break
            found.add(entry["sample"])
        return len(found) if found and found < block else 0

    def finished(self) -> dict[tuple[str, str], dict[int, int]]:
        """By defence and attack, the samples with a record, and on how many selection draws the
        defence was right on what it reports."""
        found: dict[tuple[str, str], dict[int, int]] = {}
        for record in self.read_records():
            found.setdefault((record.defense, record.attack), {})[record.sample] = record.kept
        return found

    def _append(self, name: str, entries: list[dict[str, Any]]) -> None:
        make_folder(self.path)
        path = self.path / _of_process(name, self.process)
        begun = not path.exists()
        with path.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        if begun:
            sync(self.path)

    def _read(self, name: str) -> list[dict[str, Any]]:
        """The entries of all processes, by their numbers."""
        return [entry for path in self._paths(name) for entry in read_lines(path)]

    def _paths(self, name: str) -> list[Path]:
        """The files of that name of all processes; a copy of the user's is none of them."""
        stem, suffix = name.split(".")
        numbers = (path.name.split(".")[1] for path in self.path.glob(f"{stem}.*.{suffix}"))
        processes = {0, *(int(number) for number in numbers if number.isdigit())}
        paths = (self.path / _of_process(name, process) for process in sorted(processes))
        return [path for path in paths if path.exists()]


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


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _of_process(name: str, process: int) -> str:
    stem, *suffix = name.split(".")
    return ".".join([stem, *([str(process)] if process else []), *suffix])


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"{folder}: this file system has no locks: start no second run in the folder",
                stacklevel=2,
            )
            return
        if not isinstance(error, BlockingIOError):
            raise
        raise InputError(
            f"{folder}: another evaluation is writing there: wait for its end, stop it, or give"
            " another --model.run"
        ) from None
