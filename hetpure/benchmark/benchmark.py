"""Runs the sections, keeps every row as soon as it is measured, and makes tables of them."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hetpure.benchmark.machine import Machine
from hetpure.benchmark.sections import SECTIONS, Piece, Section
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.provenance import provenance
from hetpure.memory import gigabytes

FORMAT = 1  # of the JSON
RESULTS, TABLES = "benchmark.json", "benchmark.md"
NOT_RUN, FAILED = "not_run", "failed"
Results = dict[str, Any]
Say = Callable[[str], None]


def benchmark(
    machine: Machine,
    folder: Path,
    say: Say = print,
    sections: Mapping[str, Section] = SECTIONS,
) -> Results:
    """Measures what the folder's file does not hold yet. It is written after every row; rows that
    were not run for want of time or memory, or that failed, are tried again by the next start."""
    path = folder / RESULTS
    results = _begun(machine, path)
    for name, section in sections.items():
        rows = results["sections"].setdefault(name, {"title": section.title, "rows": {}})["rows"]
        start = time.perf_counter()
        for piece in section.pieces(machine):
            if piece.name in rows and not {NOT_RUN, FAILED} & rows[piece.name].keys():
                continue
            spent = time.perf_counter() - start
            left = math.inf if machine.quick else machine.patience * section.seconds - spent
            rows[piece.name] = _row(machine, piece, left)
            write_whole(path, (json.dumps(results, indent=2) + "\n").encode())
            say(f"{section.title}: {piece.name}: {_in_words(rows[piece.name])}")
    write_whole(folder / TABLES, (tables(results) + "\n").encode())
    return results


def failed(results: Results) -> list[str]:
    """The rows of an error that is no want of time or memory."""
    sections = results["sections"].values()
    return [name for part in sections for name, row in part["rows"].items() if FAILED in row]


def _begun(machine: Machine, path: Path) -> Results:
    """What the file holds, or a beginning; InputError where it is of something else."""
    fresh: Results = {
        "format": FORMAT,
        "machine": asdict(machine),
        "provenance": provenance(torch.device(machine.device)),
        "sections": {},
    }
    if not path.exists():
        return fresh
    try:
        results = json.loads(path.read_text("utf-8"))
        same = all(results[key] == fresh[key] for key in fresh.keys() - {"sections"})
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no benchmark's: name another --output") from None
    if not same:
        raise InputError(
            f"{path} is of other settings, another commit or another machine: name another --output"
        )
    assert isinstance(results, dict)
    return results


def _row(machine: Machine, piece: Piece, left: float) -> dict[str, Any]:
    """What was measured, or why it was not."""
    try:
        if reason := _refusal(machine, piece, left):
            return {NOT_RUN: reason}
        return piece.measure()
    except Exception as error:  # no error of one row may lose the others
        line = (str(error).splitlines() or [""])[0][:160]
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in line:
            return {NOT_RUN: f"out of memory: {line}"}
        return {FAILED: f"{type(error).__name__}: {line}"}
    finally:
        if machine.device == "cuda":
            torch.cuda.empty_cache()


def _refusal(machine: Machine, piece: Piece, left: float) -> str | None:
    """Why a piece is not run with so many seconds left to its section, if so."""
    if reason := piece.refused or machine.refusal(piece.network):
        return reason
    if left <= 0:
        return "the section's time is up"
    need, budget = piece.need(), machine.budget
    if need > budget:
        return f"it needs {gigabytes(need)} of memory, {gigabytes(budget)} can be used"
    forward, both = machine.image_seconds(piece.network)
    seconds = piece.calls[0] * forward + piece.calls[1] * both + piece.seconds
    if seconds > left:
        return f"it would take {seconds:.0f} s, its section has {left:.0f} s left"
    return None


def tables(results: Results) -> str:
    """Everything in Markdown."""
    origin = results["provenance"]
    size = results["machine"]
    lines = [
        f"On {origin['device']}, {origin['threads']} threads, torch {origin['packages']['torch']},"
        f" commit {origin['commit']}; {'quick sizes' if size['quick'] else 'full sizes'}. Times in"
        " milliseconds, medians.",
    ]
    for section in results["sections"].values():
        rows = section["rows"]
        measured = [row for row in rows.values() if not {NOT_RUN, FAILED} & row.keys()]
        columns = list(dict.fromkeys(key for row in measured for key in row))
        heads = ["", *(column.replace("_", " ") for column in columns)]
        lines += ["", f"**{section['title']}**", ""]
        if measured:
            lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for name, row in rows.items():
            if row in measured:
                cells = [_cell(column, row.get(column)) for column in columns]
                lines.append(f"| {' | '.join([name, *cells])} |")
        lines.append("")
        for name, row in rows.items():
            if row not in measured:
                lines.append(f"- {name}: {_in_words(row)}")
    return "\n".join(lines).rstrip()


def _in_words(row: Mapping[str, Any]) -> str:
    if NOT_RUN in row:
        return f"not run: {row[NOT_RUN]}"
    if FAILED in row:
        return f"failed: {row[FAILED]}"
    return ", ".join(
        f"{name.replace('_', ' ')} {_cell(name, value)}" for name, value in row.items()
    )


def _cell(column: str, value: Any) -> str:
    """A number as people read it."""
    if value is None:
        return "-"
    if column.endswith("bytes"):
        return gigabytes(value)
    if column == "share":
        return f"{value:.1%}"
    if column.endswith("cosine"):
        return f"{value:.6f}"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
