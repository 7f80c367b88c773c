"""Attacks held against one of them, by hand."""

from collections.abc import Callable
from types import ModuleType

import pytest

from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("paired_attacks")


def record(attack: str, sample: int, right: bool) -> Record:
    return Record(
        "d", attack, sample, 1, [int(right)] * 2, [0], 0, 0.1, 0.1, None, 0, "Linf 0.1", []
    )


def test_only_common_images_are_paired(benchmark: ModuleType) -> None:
    """PGD on eight images, two right; another attack on the first four, all right."""
    records = [record("clean", s, True) for s in range(8)]
    records += [record("pgd", s, s in (0, 7)) for s in range(8)]
    records += [record("other", s, True) for s in range(4)]
    (row,) = benchmark.table(records, ["absent", "pgd"]).splitlines()[2:]
    name, attack, n, ours, theirs, difference = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, attack, n) == ("d", "other", "4")
    assert ours.startswith("100.0 [") and theirs.startswith("25.0 [")
    assert difference.startswith("+75.0 [")
    with pytest.raises(InputError, match="attacked by absent"):
        benchmark.table(records, ["absent"])
