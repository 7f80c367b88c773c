"""The README's figure says what the README's table says."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image


def test_its_accuracies_are_those_of_the_table(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    idea, tables = script("idea"), script("tables")
    results = tables.results(idea.RUN)
    rows = [
        line for line in tables.summary(idea.RUN).splitlines() if line[2:].startswith(idea.ROWS)
    ]
    assert len(rows) == len(idea.ROWS)
    for name, line in zip(idea.ROWS, rows, strict=True):
        for count, cell in zip(
            idea.levels_of(results["defenses"][name]), line.split(" | ")[2:], strict=True
        ):
            assert cell.startswith(f"{100 * count['accuracy']:.1f} [")
            assert f"n = {count['n']}" in cell
    way = [("image", torch.rand(1, 4, 4), "a class")] * 6
    idea.draw(way, results, tmp_path / "idea.png")
    with Image.open(tmp_path / "idea.png") as picture:
        assert picture.width > 1000
