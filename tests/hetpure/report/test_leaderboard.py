"""The page of a comparison says what the comparison says."""

from contextlib import suppress
from pathlib import Path

import pytest

from hetpure.__main__ import main
from hetpure.evaluation.reading import read_results
from hetpure.evaluation.run_results import write_results
from hetpure.report.table import interval
from tests.hetpure.report.pages import cells, check_page
from tests.hetpure.run_records import (
    DRAWS,
    RIGHT_A,
    RIGHT_B,
    compared,
    defended,
    lines,
    stored,
    write,
)

HOSTILE = '<b>"b"</b>'


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two finished runs, one with a config, and one of an earlier version."""
    robust = {"good": ("a", RIGHT_A), "bad": (HOSTILE, RIGHT_B)}
    for run, (name, right) in robust.items():
        records = [*defended(name, right), *lines(name, "null", [DRAWS] * 40)]
        store = stored(tmp_path / run, records, images=40)
        (store.path / "config.yaml").write_text("model: {}\n")
        write_results(store)
    write(tmp_path / "earlier", defended("c", RIGHT_B))
    return [str(tmp_path / run) for run in ("bad", "good", "earlier")]


def page_of(place: Path, *arguments: str) -> str:
    """Of a comparison in which a defence may be worse, which ends the program."""
    with suppress(SystemExit):
        main(["compare", *arguments, f"--html={place}"])
    return place.read_text("utf-8")


def test_a_leaderboard_has_the_numbers_of_the_comparison(
    folders: list[str], tmp_path: Path
) -> None:
    root = check_page(page_of(tmp_path / "board.html", *folders))
    rows = cells(root, "Defences, the most accurate first")
    assert [row[0] for row in rows] == ["a", HOSTILE, "c"]  # equals stay in the order of the runs
    expected = compared(*folders)
    for row in rows:
        for kind, place in (("clean", 2), ("robust", 3)):
            accuracy = expected[kind, f"{row[1]}:{row[0]}"].accuracy
            assert row[place] == interval(accuracy.as_dict())
        assert row[5] == "40"
    difference = expected["robust", "good:a"].difference
    assert difference is not None
    assert rows[0][4].startswith(f"+{100 * difference.difference:.1f} [")
    assert rows[1][4] == "baseline"
    good = read_results(tmp_path / "good")["defenses"]["a"]
    assert rows[0][6:9] == [
        interval(good["null_attack"]["single"]),
        interval(good["attacks"]["pgd"]["single"]),
        "1",
    ]
    assert rows[0][9] == f"{good['cost']['network_calls']:,}"
    assert rows[2][6] == rows[2][9] == "-"  # it has no null attack, and did not count its calls
    assert "Of 3 defences good:a is right most often (robust): on" in root.all("header")[0].text
    assert "bad:" + HOSTILE in root.text


def test_what_does_not_compare_is_announced_at_the_top_and_recipes_are_linked(
    folders: list[str], tmp_path: Path
) -> None:
    (tmp_path / "pages").mkdir()
    root = check_page(page_of(tmp_path / "pages/board.html", *folders))
    assert "These numbers may not compare" in root.all("header")[0].text
    (different,) = [s for s in root.all("section") if s.attributes["id"] == "cautions"]
    assert "earlier does not say what its data and attacks are" in different.text
    links = [a.attributes["href"] for a in root.all("a") if a.attributes["href"][0] != "#"]
    assert links == ["./../bad/config.yaml", "./../good/config.yaml"]
    assert all((tmp_path / "pages" / link).is_file() for link in links)
    assert [row[6] for row in cells(root, "Runs")][2] == "none"


def test_an_unfinished_run_is_counted_as_it_is_now(tmp_path: Path) -> None:
    records = [*defended("a", RIGHT_A), *lines("a", "null", [DRAWS] * 40)]
    store = stored(tmp_path / "half", [*records, *defended("b", RIGHT_B)[:41]], images=40)
    (store.path / "results.json").write_text("{}")
    assert read_results(store.path)["missing"] == 1
    other = write(tmp_path / "other", defended("c", RIGHT_B))
    root = check_page(page_of(tmp_path / "board.html", f"{store.path}", other, "--attack=pgd"))
    assert [r[4] for r in cells(root, "Runs")] == ["not finished: 1 part missing", "finished"]
    assert (store.path / "results.json").read_text() == "{}"  # a comparison writes into no run


def test_a_page_needs_a_folder_that_exists(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="--html .*: a file in a folder that exists"):
        main(["compare", *folders, f"--html={tmp_path / 'none/board.html'}"])
