"""Records of runs written by hand, and their columns."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hetpure.evaluation.compare import (
    Column,
    Comparison,
    Counting,
    compare,
    read_columns,
    read_runs,
)

Line = dict[str, Any]
DRAWS = 4
RIGHT_A, RIGHT_B = [4, 4, 3, 2, 1, 0, 4, 4] * 5, [4, 3, 3, 0, 0, 0, 1, 4] * 5


def line(defense: str, attack: str, sample: int, right: int, **more: Any) -> Line:
    """A record with `right` of four report draws right; its own label is the sample's id."""
    predictions = [sample] * right + [-1] * (DRAWS - right)
    return {
        "defense": defense, "attack": attack, "sample": sample, "label": sample,
        "predictions": predictions, "selection": [right, DRAWS], "chosen": 0, "linf": 0.1,
        "l2": 1.0, "coverage": None, "network_calls": 1, "of_a_later_version": {"a": 1}, **more,
    }  # fmt: skip


def lines(defense: str, attack: str, right: Iterable[int], **more: Any) -> list[Line]:
    return [line(defense, attack, sample, count, **more) for sample, count in enumerate(right)]


def defended(defense: str, robust: list[int]) -> list[Line]:
    """Right on all clean images; under `pgd` as told."""
    return lines(defense, "clean", [DRAWS] * len(robust)) + lines(defense, "pgd", robust)


def write(folder: Path, records: list[Line], results: Any = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def columns(*folders: str, attack: str = "robust", counting: Counting = "single") -> list[Column]:
    return read_columns(read_runs(folders), attack, counting)[0]


def compared(
    *folders: str, attack: str = "robust", counting: Counting = "single"
) -> dict[tuple[str, str], Comparison]:
    """All defences against the first, by kind and defence."""
    found = columns(*folders, attack=attack, counting=counting)
    return {(c.kind, c.column.name): c for c in compare(found, found[0], attack, counting)}
