"""Runs written by hand, of this version and of earlier ones, and their columns."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from hetpure.evaluation.compare import Column, Comparison, compare, read_columns, read_runs
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import Counting, by_attack
from hetpure.evaluation.store import Finished, Job, Store

Line = dict[str, Any]
DRAWS = 4
RIGHT_A, RIGHT_B = [4, 4, 3, 2, 1, 0, 4, 4] * 5, [4, 3, 3, 0, 0, 0, 1, 4] * 5


def line(defense: str, attack: str, sample: int, right: int, **more: Any) -> Line:
    """A record with `right` of four report draws right; its label is the sample's id."""
    predictions = [sample] * right + [-1] * (DRAWS - right)
    return {
        "defense": defense, "attack": attack, "sample": sample, "label": sample,
        "predictions": predictions, "selection": [right, DRAWS], "chosen": 0, "linf": 0.1,
        "l2": 1.0, "coverage": None, "network_calls": 1, "of_a_later_version": {"a": 1}, **more,
    }  # fmt: skip


def lines(defense: str, attack: str, right: Iterable[int], **more: Any) -> list[Line]:
    return [line(defense, attack, sample, count, **more) for sample, count in enumerate(right)]


def defended(defense: str, robust: list[int]) -> list[Line]:
    """Right on all clean images; under `pgd` as given."""
    return lines(defense, "clean", [DRAWS] * len(robust)) + lines(defense, "pgd", robust)


def write(folder: Path, records: list[Line], results: Any = None) -> str:
    """A run of an earlier version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def stored(
    folder: Path,
    records: list[Line],
    images: int,
    struck: Mapping[str, str] | None = None,
    data: str = "toy",
) -> Store:
    """A run of this version on so many images in one block. What there are no records of is
    missing, but for the records of rows that are `struck` out."""
    store = Store(folder)
    rows: dict[str, dict[str, Any]] = {}
    for entry in records:
        rows.setdefault(entry["defense"], {})[entry["attack"]] = {"images": images, "threat": None}
    facts = {
        "run": {
            "data": data, "attack": "PGD", "attacks": {}, "report_draws": DRAWS,
            "selection_draws": 1, "audit": None, "baseline": None, "network_call": "float32",
        },
        "images": images,
        "rows": {
            name: {
                "purification_calls": 1, "classes": 10, "base": "pgd",
                "attacked": "gradient_check", "inexact": [], "cells": cells,
            }
            for name, cells in rows.items()
        },
        "notes": [],
        "weaker_than_full": [],
    }  # fmt: skip
    store.begin(
        {
            "identity": {},
            "facts": facts,
            "block": images,
            "execution": {name: {} for name in rows},
            "provenance": {"data": {}},
        }
    )
    known = {field.name for field in fields(Record)}
    for name in rows:
        check = {"gradient_checks": {}, "gradient": {}, "sameness": []}
        check |= {"strikes": True, "seconds": 0.0}
        store.put_check(name, check)
        if struck and name in struck:
            store.strike(name, struck[name])
        of_row = [
            Record(**{"threat": None, "known": []} | {k: v for k, v in r.items() if k in known})
            for r in records
            if r["defense"] == name
        ]
        for attack, block in by_attack(of_row).items():
            if len(block) == images:
                finished = Finished(block, [], 1.0, "abc")
                store.put(Job(name, attack, 0), finished, torch.zeros(images, 1, 1, 1))
    return store


def columns(*folders: str, attack: str = "robust", counting: Counting = "single") -> list[Column]:
    return read_columns(read_runs(folders), attack, counting)[0]


def compared(
    *folders: str, attack: str = "robust", counting: Counting = "single"
) -> dict[tuple[str, str], Comparison]:
    """All defences against the first, by kind and defence."""
    read = columns(*folders, attack=attack, counting=counting)
    return {(c.kind, c.column.name): c for c in compare(read, read[0], attack, counting)}
