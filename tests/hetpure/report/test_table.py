"""The tables of results: a column only where it says something, a struck row says its reason."""

import io
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.statistics import Difference
from hetpure.report.lines import state
from hetpure.report.report import page
from hetpure.report.table import attacks_sheet, defenses_sheet, note, protocol_sheets
from tests.hetpure.run_records import DRAWS, Line, defended, lines, stored


def run_of(*names: str) -> list[Line]:
    """The first defence is right on half the draws under attack, the others on all."""
    rights = [DRAWS // 2] + [DRAWS] * (len(names) - 1)
    return [
        entry
        for name, right in zip(names, rights, strict=True)
        for entry in (*defended(name, [right] * 8), *lines(name, "null", [DRAWS] * 8))
    ]


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    return write_results(stored(tmp_path, run_of("base", "other"), images=8))


def test_each_row_is_compared_with_the_baseline(results: dict[str, Any]) -> None:
    assert "difference" not in " ".join(defenses_sheet(results).heads), "there is no baseline"
    assert "mean over 4 fresh noise draws" in note(results)
    assert "chosen on 1 other draw." in note(results)
    gap = Difference(0.5, 0.25, 0.75, 8)
    results["run"]["baseline"] = "base"
    results["defenses"]["other"]["difference"] = {"robust": gap.as_dict()}
    sheet = defenses_sheet(results)
    assert sheet.heads[-1] == "robust difference"
    assert [row[-1] for row in sheet.rows] == ["-", "+50.0 [+25.0, +75.0]"]
    assert "robust difference: single, in points from 'base', paired" in note(results)
    assert "not corrected for their number" in note(results)


def test_attacks_of_one_row_are_beside_each_other(results: dict[str, Any]) -> None:
    about = results["defenses"]["base"]["attacks"]["pgd"]
    results["defenses"]["base"]["attacks"]["dw"] = about | {"known": ["forward"], "vote": None}
    rows = attacks_sheet(results).rows
    assert [row[:2] for row in rows] == [
        ("base", "null attack"), ("base", "pgd"), ("base", "dw (forward known)"),
        ("other", "null attack"), ("other", "pgd"),
    ]  # fmt: skip
    assert rows[2][4] == "-" and rows[1][4] != "-"


HEADS = ["defence", "attack", "n", "single", "vote", f"worst of {DRAWS}"]


def test_the_null_attack_is_counted_beside_the_attacks(results: dict[str, Any]) -> None:
    """And the number of draws is in the head. What no attack has makes no column."""
    sheet = attacks_sheet(results)
    assert list(sheet.heads) == [*HEADS, "success"]
    place = sheet.heads.index(f"worst of {DRAWS}")
    assert [row[place].split()[0] for row in sheet.rows] == ["100.0", "0.0", "100.0", "100.0"]
    assert f"right on all {DRAWS} report draws" in sheet.note


def test_a_narrow_terminal_cuts_nothing_off(results: dict[str, Any]) -> None:
    """Though all columns are filled: of each head every letter is there."""
    for about in (a for row in results["defenses"].values() for a in row["attacks"].values()):
        about |= {"mean_logit": about["vote"], "mean_probability": about["vote"]}
        about |= {"dw_box": about["vote"], "eot_agreement": 0.5}
    console = Console(width=80, file=io.StringIO(), record=True)
    sheet = attacks_sheet(results)
    console.print(sheet.terminal())
    assert len(sheet.heads) == 11 and "…" not in console.export_text()


def test_a_column_is_there_where_one_row_fills_it(tmp_path: Path) -> None:
    means = {"mean_logit": -1, "mean_probability": 0}  # wrong; right of sample 0 alone
    new = [entry | means for entry in (*defended("new", [2] * 8), *lines("new", "null", [4] * 8))]
    known = lines("base", "dw", [DRAWS] * 8, known=["reverse"])
    results = write_results(stored(tmp_path, [*run_of("base"), *known, *new], images=8))
    results["defenses"]["base"]["attacks"]["pgd"]["eot_agreement"] = 0.25
    sheet = attacks_sheet(results)
    further = ["mean logit", "mean probability", "DW-box", "success", "EOT cosine"]
    assert list(sheet.heads) == [*HEADS, *further]
    cells = {row[:2]: [cell.split()[0] for cell in row[-5:]] for row in sheet.rows}
    assert cells == {
        ("base", "null attack"): ["-"] * 5,
        ("base", "pgd"): ["-", "-", "-", "100.0", "0.25"],
        ("base", "dw (reverse known)"): ["-", "-", "100.0", "-", "-"],
        ("new", "null attack"): ["0.0", "12.5", "-", "-", "-"],
        ("new", "pgd"): ["0.0", "12.5", "-", "100.0", "-"],
    }


def test_a_struck_row_says_its_reason_in_place_of_numbers(tmp_path: Path) -> None:
    struck = {"other": "it has no gradient"}
    results = write_results(stored(tmp_path, run_of("base", "other"), images=8, struck=struck))
    base, other = defenses_sheet(results).rows
    assert base[0] == "base" and "" not in base
    assert other[0] == "other, struck out: it has no gradient"
    assert set(other[1:]) == {""}
    assert "other" not in results["defenses"] and state(results) == []
    assert "| other, struck out: it has no gradient |" in page(results, figure=None)


@pytest.mark.parametrize("name", ["a|b", "two\nlines", r"$\bm{t}^*$", "[/x]"])
def test_a_name_breaks_no_table_of_the_page(name: str, tmp_path: Path) -> None:
    results = write_results(stored(tmp_path, run_of(name, "other"), images=8))
    lines = [line for line in page(results, figure=None).splitlines() if line.startswith("|")]
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines]
    columns = [(count, len(list(of_table))) for count, of_table in groupby(cells)]
    assert columns == [(11, 4), (9, 6), (3, 2), (9, 4)], (
        "a row more or less, or one of other columns"
    )


def test_an_unfinished_run_says_so_and_shows_what_is_complete(tmp_path: Path) -> None:
    records = [*run_of("base", "other"), *lines("other", "apgd", [DRAWS])]  # of one image of eight
    results = write_results(stored(tmp_path, records, images=8))
    assert list(results["defenses"]) == ["base"]
    (line,) = state(results)
    assert line.startswith("NOT FINISHED: 1 part missing")
    assert line in page(results, figure=None)
    nothing = write_results(stored(tmp_path / "x", lines("a", "clean", [DRAWS]), images=8))
    assert nothing["defenses"] == {} and protocol_sheets(nothing) == []
