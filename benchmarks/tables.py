"""Writes the tables of README, docs/recipes.md and docs/experiments from the committed records.

    python benchmarks/tables.py

A table stands in a page between two markers. The first names the run, or several runs with a `+`
between them, then the kind of table, and what this kind asks for:

    <!-- table: full_fashion_mnist compare vote uniform t=200 -->
    <!-- end -->

A table without committed records stays as it is. Records are NAME.records.jsonl.xz and
NAME.results.json.xz of a run, NAME.json.xz of a benchmark.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import addt
import addt_experiment
import antithetic
import frauds
import gradients
import overlap
import paired_attacks
import recipes
import resampling
import scaling
import strength
from committed import (
    EXPERIMENTS,
    README,
    RECIPES,
    has_records,
    recorded_run,
    records_of,
    results_of,
    saved_results,
    unpacked,
)

from hetpure.benchmark.benchmark import tables as device_tables
from hetpure.errors import InputError
from hetpure.evaluation.compare import ROBUST, compare, find_baseline, read_columns
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import FRESH
from hetpure.program import run
from hetpure.report.comparison import sheets
from hetpure.report.lines import state
from hetpure.report.sheet import Sheet
from hetpure.report.table import attacks_sheet, audit_sheet, defenses_sheet, interval

MARKED = re.compile(r"^<!-- table: (.+?) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)

results = cache(results_of)


@cache
def records(names: str) -> list[Record]:
    """Those of all runs of a marker."""
    return [record for name in names.split("+") for record in records_of(name)]


def defenses(name: str) -> str:
    """A row a defence; and the number format of network calls, and whether the run was finished."""
    summary = results(name)
    call = f"The diffusion network's calls: {summary['run'].get('network_call', 'float32')}."
    return "\n\n".join([markdown(defenses_sheet(summary)), call, *state(summary)])


def summary(name: str) -> str:
    """A few columns of a run with a DW-box attack, for who reads one table only."""
    lines = [
        "| defence | calls | clean | robust | noise known |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row, defense in results(name)["defenses"].items():
        known = [attack["dw_box"] for attack in defense["attacks"].values() if attack.get("known")]
        counts = [defense["clean"]["single"], defense["robust"]["single"], *known[:1]]
        cells = [f"{interval(count)}, n = {count['n']}" for count in counts]
        cells += ["-"] * (3 - len(cells))
        lines.append(f"| {row} | {defense['purification_calls']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def departures(name: str) -> str:
    """What is weaker than the full protocol, an entry each."""
    return "\n".join(f"- {line}" for line in results(name)["weaker_than_full"])


def comparison(name: str, counting: str, *baseline: str) -> str:
    """All rows against the named one, on clean images and under the worst of all attacks."""
    how = next((known for known in FRESH if known == counting), None)
    if how is None:
        raise InputError(f"{counting} is no way of counting: allowed are {', '.join(FRESH)}")
    columns, _ = read_columns([recorded_run(name)], ROBUST, how)
    compared = compare(columns, find_baseline(columns, " ".join(baseline)), ROBUST, how)
    return markdown(*sheets(compared))


def paired(names: str, *base: str) -> str:
    """All attacks against the named one, or against PGD."""
    return paired_attacks.table(records(names), [" ".join(base)] if base else paired_attacks.BASE)


def benchmark(name: str) -> str:
    """What a benchmark prints, from the JSON that it wrote."""
    return BENCHMARKS[name](json.loads(unpacked(f"{name}.json")))


def differences(names: str) -> str:
    """Each row's from its clean fine-tuning, under every attack."""
    of_runs = records(names)
    return addt_experiment.differences_from_clean(of_runs, addt_experiment.attacks_of(of_runs))


def markdown(*made: Sheet) -> str:
    """Titles and tables. The page itself says what the columns are."""
    return "\n\n".join(replace(sheet, note="").markdown() for sheet in made)


BENCHMARKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "addt_update": addt.table,
    "addt_update_bfloat16": addt.table,
    "antithetic": antithetic.tables,
    "device_cpu": device_tables,
    "device_gpu": device_tables,
    "frauds": frauds.table,
    "gradients": gradients.tables,
    "gradients_cifar10": gradients.tables,
    "cluttered_thresholds": overlap.table,
    "cluttered_overlap": overlap.table,
    "resampling": resampling.tables,
}
KINDS: dict[str, Callable[..., str]] = {
    "defenses": defenses,
    "departures": departures,
    "summary": summary,
    "attacks": lambda name: markdown(attacks_sheet(results(name))),
    "audit": lambda name: markdown(audit_sheet(results(name))),
    "compare": comparison,
    "paired": paired,
    "contrasts": lambda names: addt_experiment.contrasts(records(names)),
    "cells": lambda names: addt_experiment.cells(records(names)),
    "differences": differences,
    "strength": lambda names: strength.table(strength.recorded(names.split("+"))),
    "agreements": lambda name: addt_experiment.agreements(saved_results(name)),
    "benchmark": benchmark,
    "recipes": lambda name: recipes.table(
        json.loads(unpacked(f"{name}.json")) if has_records(name) else recipes.NOT_PLANNED
    ),
    "files": lambda _: recipes.files_table(),
    "workers": lambda _: scaling.table(scaling.committed().extended(10_000)),
}


def missing(name: str) -> list[str]:
    """The runs of a marker that have no records. Of files nothing is recorded, and recipes are
    listed without their costs."""
    if name.split()[1] in ("files", "recipes"):
        return []
    return [part for part in name.split()[0].split("+") if not has_records(part)]


def table(name: str) -> str:
    """The table that a marker names."""
    runs, kind, *words = name.split()
    if kind not in KINDS:
        raise InputError(f"table: {name}: there is no kind {kind}: allowed are {', '.join(KINDS)}")
    return KINDS[kind](runs, *words)


def rewritten(page: str) -> str:
    """A page with its tables made again."""

    def again(match: re.Match[str]) -> str:
        name = match[1]
        if missing(name):
            return match[0]
        return f"<!-- table: {name} -->\n{table(name)}\n<!-- end -->"

    return MARKED.sub(again, page)


def main(_: list[str]) -> None:
    """Writes every page whose tables changed, and says which."""
    for path in (README, RECIPES, *sorted(EXPERIMENTS.glob("*.md"))):
        page = path.read_text()
        without = [name for match in MARKED.finditer(page) for name in missing(match[1])]
        if without:
            print(f"{path.name}: no records of {', '.join(dict.fromkeys(without))}")
        if (new := rewritten(page)) != page:
            path.write_text(new)
            print(f"{path.name}: written")


if __name__ == "__main__":
    run(main, sys.argv[1:])
