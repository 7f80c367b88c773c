"""How a comparison reads: its warnings, its verdict, and the same numbers in every format."""

import csv
import io
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from hetpure.evaluation.compare import Comparison, compare, read_columns, read_runs
from hetpure.evaluation.results import Counting
from hetpure.report.comparison import (
    MEANING,
    cautions,
    latex,
    notes,
    sheets,
    verdict,
    write_csv,
)
from tests.hetpure.run_records import RIGHT_A, columns, defended, line, lines, stored, write


def warned(*folders: str, counting: Counting = "single") -> list[str]:
    runs = read_runs(folders)
    read, absent = read_columns(runs, "robust", counting)
    return list(cautions(runs, read, absent, read[0], counting))


DONE: dict[str, Any] = {
    "run": {"data": "toy", "attacks": {"pgd": "10 steps"}, "report_draws": 4, "baseline": "a"},
    "provenance": {"data": {"images": "a" * 64, "labels": "c" * 64}},
}


def test_other_data_and_attacks_are_named(tmp_path: Path) -> None:
    other = {
        "run": DONE["run"] | {"attacks": {"pgd": "20 steps", "apgd": "9"}, "report_draws": 2},
        "provenance": {"data": {"images": "b" * 64, "labels": "c" * 64}},
    }
    first = write(tmp_path / "x", defended("a", [4]), DONE)
    alike = DONE | {"run": DONE["run"] | {"baseline": 0}}
    assert warned(first, write(tmp_path / "z", defended("b", [4]), alike)) == []
    second = write(tmp_path / "y", defended("b", [4]) + lines("b", "apgd", [4], threat="L2"), other)
    assert warned(first, second) == [
        "attacks.pgd differs: 20 steps in y, 10 steps in x",
        "attacks.apgd differs: 9 in y, nothing in x",
        "report_draws differs: 2 in y, 4 in x",
        "data differs between y and x: images",
    ]


def test_other_attacks_threats_and_draws_in_the_records_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "x", defended("a", [4]))
    clean = lines("b", "clean", [4])
    second = write(
        tmp_path / "y", [*clean, line("b", "apgd", 0, 4, threat="L2", predictions=[0, 0])]
    )
    warnings = warned(first, second, counting="worst")
    assert [warning.split()[:3] for warning in warnings[:4]] == [
        [name, *words] for name in "xy" for words in (("is", "not"), ("does", "not"))
    ]
    assert warnings[4:] == [
        "attacks differ: apgd on y:b, pgd on x:a",
        "threat differs: L2 on y:b, None on x:a",
        "worst is over 2 draws of y:b and 4 of x:a: more draws are more chances to be wrong",
    ]


def test_unfinished_runs_and_struck_rows_are_named(tmp_path: Path) -> None:
    records = [*defended("a", [4, 2]), *defended("b", [0, 0]), *lines("a", "apgd", [1])]
    first = stored(tmp_path / "x", records, images=2, struck={"b": "no gradient"})
    second = stored(tmp_path / "y", defended("c", [4, 2]), images=2, data="others")
    assert warned(str(first.path), str(second.path)) == [
        "left out, x:b is struck out: no gradient",
        "x is not finished: robust is over the samples that all its attacks have",
        "data differs: others in y, toy in x",
    ]


NASTY = r"50% of_$x & {y} #1 \ ~^<[z]|"


@pytest.fixture
def shown(tmp_path: Path) -> list[Comparison]:
    """A baseline, a defence that is far worse under attack, and an equal one of another run."""
    worse = defended("[*]", [0] * 40) + lines("[*]", "square", [0])
    first = write(tmp_path / "x_1", defended(NASTY, RIGHT_A) + worse, results={"run": {}})
    second = write(tmp_path / "y", defended("same", RIGHT_A))
    defences = columns(first, second, counting="vote")
    return compare(defences, defences[0], "robust", "vote")


def test_the_verdict_is_about_one_kind_and_its_tolerance(shown: list[Comparison]) -> None:
    baseline = shown[0].column
    assert verdict(shown, baseline, "clean", 0) == (
        True, f"clean: no defence is significantly worse than x_1:{NASTY}"
    )  # fmt: skip
    assert verdict(shown, baseline, "robust", 0) == (
        False, f"robust: significantly worse than x_1:{NASTY}: x_1:[*]"
    )  # fmt: skip
    passed, line = verdict(shown, baseline, "robust", 99)
    assert passed and line.endswith("by more than 99 points")


def test_the_terminal_shows_every_number_and_name(shown: list[Comparison]) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(*(sheet.terminal(wrap=False) for sheet in sheets(shown)))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("baseline") == 2
    assert re.search(r"\[\*\] +40 +0\.0 \[0\.0, 8\.8\] +-\d\d\.\d \[-\d\d\.\d, -\d\d\.\d\]", text)
    assert "<0.001" in text
    remarks = " ".join(notes(shown, shown[0].column, "vote"))
    assert "4 differences, with intervals that are not corrected for their number" in remarks
    assert "x_1:[*]: robust leaves out square" in remarks
    assert "exact McNemar" in remarks


def test_the_csv_holds_every_number(shown: list[Comparison], tmp_path: Path) -> None:
    write_csv(shown, shown[0].column, "vote", tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["defense"], row["kind"]) for row in rows] == [
        (c.column.run, c.column.defense, c.kind) for c in shown
    ]
    for row, c in zip(rows, shown, strict=True):
        assert float(row["accuracy"]) == c.accuracy.accuracy
        assert int(row["n"]) == 40
        assert row["baseline_defense"] == NASTY
        assert (row["difference"] == "") == (c.difference is None)
        if c.difference is not None:
            assert float(row["difference_high"]) == c.difference.high
        assert (row["p_value"] != "") == (c.test is not None)


def test_every_counting_is_explained_and_the_null_attack_names_itself(tmp_path: Path) -> None:
    assert set(MEANING) == set(get_args(Counting))
    records = [e for d in "ab" for e in (*defended(d, [4]), *lines(d, "null", [4]))]
    defences = columns(write(tmp_path / "x", records), counting="worst")
    shown = compare(defences, defences[0], "robust", "worst")
    assert [sheet.title for sheet in sheets(shown)] == ["clean", "null", "robust: pgd"]
    write_csv(shown, shown[0].column, "worst", tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = [(row["kind"], row["attacks"]) for row in csv.DictReader(file)]
    assert dict.fromkeys(rows) == dict.fromkeys(
        [("clean", ""), ("null", "null"), ("robust", "pgd")]
    )


def test_the_latex_is_well_formed(shown: list[Comparison]) -> None:
    """No TeX here: braces and environments balance, every line has all cells, what is special in
    TeX is escaped, and no line's end takes the next cell for its option."""
    text = latex(sheets(shown), notes(shown, shown[0].column, "vote"))
    body = [text_line for text_line in text.splitlines() if not text_line.startswith("%")]
    assert body[0].startswith(r"\begin{tabular}{lr")
    assert body[-1] == r"\end{tabular}"
    plain = re.sub(r"\\[&%$#_{}\\]", "", "\n".join(body))
    assert plain.count("{") == plain.count("}")
    assert not set("%#_~^<|") & set(re.sub(r"\$<0\.001\$", "", plain))
    assert plain.count("$") % 2 == 0
    cells = len(body[0].split("}{")[1].rstrip("}"))
    rows = [text_line for text_line in body if " & " in text_line]
    assert len(rows) == 7  # a head and two kinds of three
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == cells - 1
    assert r"x\_1:[*] & $40$ & $0.0\ [0.0,\ 8.8]$" in text
    assert "\n{}[*] & $40$" in latex(sheets([c for c in shown if c.column.run == "x_1"]), [])
    assert (
        r"50\% of\_\$x \& \{y\} \#1 \textbackslash{} \textasciitilde{}\textasciicircum{}"
        r"\textless{}[z]\textbar{}"
    ) in text
