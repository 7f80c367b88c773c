"""The differences of rows from the baseline, as `results.json` has them."""

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.evaluation.statistics import paired_difference

CLEAN = Record("base", "clean", 0, 1, [1, 1], [2], 0, 0.0, 0.0, None, 9, "Linf 0.0", [])


def records(name: str, right: list[int], samples: list[int]) -> Iterator[Record]:
    """Two draws a sample: `right` of them under attack, both on the clean image."""
    for count, sample in zip(right, samples, strict=True):
        predictions = [1] * count + [0] * (2 - count)
        clean = replace(CLEAN, defense=name, sample=sample)
        yield clean
        yield replace(clean, attack="null", selection=[2, 2])
        yield replace(clean, attack="pgd", selection=[0, 2], predictions=predictions)


def test_each_other_row_has_a_difference() -> None:
    rows = summarise(
        [*records("other", [2, 1, 0], [0, 1, 2]), *records("base", [0, 1, 0], [0, 1, 2])], "base"
    )
    assert "difference" not in rows["base"]
    robust = np.array([[1, 1], [1, 0], [0, 0]], dtype=bool)
    expected = paired_difference(robust, np.array([[0, 0], [1, 0], [0, 0]], dtype=bool))
    assert rows["other"]["difference"]["robust"] == expected.as_dict()
    assert rows["other"]["difference"]["robust"]["difference"] == pytest.approx(1 / 3)
    everywhere = np.ones((3, 2), dtype=bool)
    clean = paired_difference(everywhere, everywhere).as_dict()
    assert rows["other"]["difference"]["clean"] == clean
    assert json.loads(json.dumps(clean)).keys() == {"difference", "low", "high", "n"}


def test_samples_are_paired_by_their_id_not_by_their_place() -> None:
    right = [k % 3 for k in range(40)]
    ours = [*records("other", right, list(range(40)))]
    base = [*records("base", right, list(range(40)))]
    backwards = [*records("base", right[::-1], list(range(39, -1, -1)))]
    straight = summarise([*ours, *base], "base")["other"]["difference"]
    assert summarise([*ours, *backwards], "base")["other"]["difference"] == straight


def test_no_baseline_no_difference() -> None:
    both = [*records("other", [2], [0]), *records("base", [0], [0])]
    assert all("difference" not in row for row in summarise(both).values())
