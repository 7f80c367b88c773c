"""docs/reference/run_folder.md against the files of a small run: every key of every file."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.evaluation.store import Store
from tests.lightning_modules.conftest import Finished

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "run_folder.md"


def sections() -> dict[str, dict[str, str]]:
    """By heading, each key of its table and what it means."""
    tables: dict[str, dict[str, str]] = {}
    for text in PAGE.read_text().split("\n### ")[1:]:
        title, _, body = text.partition("\n")
        lines = re.findall(r"^\| (`.*?`) \| .*? \| (.*) \|$", body.split("\n## ")[0], re.MULTILINE)
        keys = [(re.findall(r"`(.*?)`", names), meaning) for names, meaning in lines]
        tables[title] = {name: meaning for names, meaning in keys for name in names}
    return tables


TABLES = sections()
COUNTS = TABLES["Counts"]


def check(content: Mapping[str, Any], table: Mapping[str, str]) -> None:
    """All that is there is on the page. All that is on the page is there, but for what is there
    under a condition, which its meaning begins with."""
    assert content.keys() <= table.keys(), content.keys() - table.keys()
    for key in table.keys() - content.keys():
        assert table[key].startswith("only ") or "Absent where" in table[key], key


def of_kind(value: Any, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """All objects in a JSON value that have these keys."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [kind for part in inner for kind in of_kind(part, keys)]
    return [*found, value] if isinstance(value, dict) and set(keys) <= value.keys() else found


@pytest.fixture(scope="module")
def results(finished: Finished) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished.folder / "results.json").read_text())
    return content


def test_results(results: dict[str, Any]) -> None:
    check(results, TABLES["The whole"])
    for part in ("run", "cost", "provenance"):
        check(results[part], TABLES[part])
    for row in results["defenses"].values():
        check(row, TABLES["defenses.NAME"])
        check(row["gradient_check"], TABLES["A gradient check"])
        check(row["clean"], COUNTS)
        check(row["null_attack"], COUNTS)
        check(row["robust"], COUNTS | TABLES["A worst"])
        check(row["robust_by_all"], COUNTS | TABLES["A worst"])
        for attack in row["attacks"].values():
            check(attack, COUNTS | TABLES["defenses.NAME.attacks.NAME"])
    estimates = of_kind(results, ["accuracy"])
    differences = of_kind(results["defenses"], ["difference", "low"])
    assert estimates and differences
    for estimate in estimates:
        check(estimate, TABLES["An estimate"])
    for difference in differences:
        check(difference, TABLES["A difference"])


def test_small_objects_of_results(results: dict[str, Any]) -> None:
    """Those whose keys stand in the text of a line."""
    lines = TABLES["defenses.NAME"]
    for row in results["defenses"].values():
        for part in ("perturbation", "mask_coverage", "execution", "cost"):
            assert row[part].keys() == set(re.findall(r"`(\w+)`", lines[part])) - {"robust"}
        assert all(f"`{key}`" in lines["audit"] for check in row["audit"] for key in check)
    audit = TABLES["run"]["audit"]
    assert results["run"]["audit"].keys() == set(re.findall(r"`(\w+)`", audit))


def test_what_is_there_with_a_baseline_or_known_noise_only(finished: Finished) -> None:
    records = [json.loads(line) for line in (finished.folder / "records.jsonl").open()]
    summary = summarise([Record(**record) for record in records], baseline="plain")
    difference = summary["masked"]["difference"]
    named = re.findall(r"`(\w+)`", TABLES["defenses.NAME"]["difference"])
    assert difference.keys() == set(named) - {"single"}
    for part in difference.values():
        check(part, TABLES["A difference"])
    assert summary["masked"]["attacks"]["dw both"].keys() >= {"dw_box"}
    check(records[0], TABLES["A record"])


def test_the_run_and_its_other_files(finished: Finished) -> None:
    folder = finished.folder
    run = json.loads((folder / "run.json").read_text())
    check(run, TABLES["The run"])
    for part in ("identity", "facts"):
        assert run[part].keys() == set(re.findall(r"`(\w+)`", TABLES["The run"][part]))
    for row in run["facts"]["rows"].values():
        check(row, TABLES["facts.rows.NAME"])
    check(json.loads((folder / "measured.json").read_text()), TABLES["measured.json"])
    for path in (folder / "gradient_checks").iterdir():
        check(json.loads(path.read_text()), TABLES["gradient_checks"])
    for path in (folder / "blocks").iterdir():
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"images", "samples"}
            check(file.metadata(), TABLES["blocks"])
            iterations = json.loads(file.metadata()["iterations"])
        for entry in iterations:
            assert all(f"`{key}`" in TABLES["blocks"]["iterations"] for key in entry)


def test_the_gallery(finished: Finished) -> None:
    for path in (finished.folder / "gallery").iterdir():
        with safe_open(path, "pt") as file:
            assert set(file.metadata()) == {"row"}
            check(dict.fromkeys(file.keys()), TABLES["gallery"])


def test_a_struck_row(tmp_path: Path) -> None:
    Store(tmp_path).strike("a row", "its gradient is zero")
    (path,) = (tmp_path / "struck").iterdir()
    check(json.loads(path.read_text()), TABLES["struck"])


def test_every_file_of_the_folder_is_listed(finished: Finished) -> None:
    listed = PAGE.read_text().split("| file | what |")[1].split("\n\n")[0]
    for path in finished.folder.iterdir():
        assert f"`{path.name}" in listed, path.name
