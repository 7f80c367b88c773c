"""The pages of docs/experiments hold what the committed records say."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from hetpure.__main__ import main
from hetpure.errors import InputError

FOLDER = Path(__file__).parent.parent.parent / "docs" / "experiments"
PAGES = sorted(FOLDER.glob("*.md"))
RUNS = sorted(path.name.partition(".")[0] for path in FOLDER.glob("records/*.results.json.xz"))
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
INTERVAL = re.compile(r"[+-]?\d+\.\d \[[+-]?\d+\.\d, [+-]?\d+\.\d\]")
NUMBER = re.compile(r"(?<![\d.])\d+\.\d(?!\d)")


@pytest.fixture
def tables(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tables")


@pytest.fixture
def committed(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("committed")


def rows(pages: list[Path]) -> str:
    """All lines of tables."""
    lines = [line for page in pages for line in page.read_text().splitlines()]
    return "\n".join(line for line in lines if line.startswith("|"))


def prose(text: str) -> str:
    """All but the tables, in one line."""
    return " ".join(" ".join(x for x in text.splitlines() if not x.startswith("|")).split())


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """The values of nested dictionaries."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


@pytest.mark.parametrize(
    "page", [FOLDER.parents[1] / "README.md", FOLDER.parent / "recipes.md", *PAGES], ids=str
)
def test_a_page_holds_the_tables_that_are_made(tables: ModuleType, page: Path) -> None:
    """`python benchmarks/tables.py` would write nothing; what it cannot make says so."""
    text = page.read_text()
    assert text == tables.rewritten(text), "run python benchmarks/tables.py"
    assert text.count("<!--") == 2 * len(tables.MARKED.findall(text)), "a marker is not closed"
    for name, table in tables.MARKED.findall(text):
        runs, kind = name.split()[:2]
        assert kind in tables.KINDS and (kind != "benchmark" or runs in tables.BENCHMARKS), name
        assert bool(tables.missing(name)) == ("No records of this table were kept" in table), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_text_cites_the_tables(page: Path) -> None:
    """Every interval of the text is in a table of its page, and the index cites all pages'. So is
    every number with one decimal of the findings."""
    text = page.read_text()
    known = rows(PAGES if page.name == "README.md" else [page])
    missing = [cited for cited in INTERVAL.findall(prose(text)) if cited not in known]
    if "## What was found" in text and page.name != "gradients.md":  # measured more than tables
        findings = prose(text.split("## What was found")[1].split("\n## ")[0])
        made = set(NUMBER.findall(known))
        missing += [number for number in NUMBER.findall(findings) if number not in made]
    assert not missing, "these numbers are in no table"


@pytest.mark.parametrize("run", RUNS)
def test_the_results_are_those_of_the_records(committed: ModuleType, run: str) -> None:
    """Counted again, every number that the run saved is there."""
    saved, again = committed.saved_results(run), committed.results_of(run)
    for name, row in again["defenses"].items():
        for key in ("clean", "null_attack", "robust", "robust_by_all", "difference", "attacks"):
            before = dict(leaves(saved["defenses"][name].get(key)))
            for path, value in leaves(row.get(key)):
                if path[-1:] == ("skipped",):  # earlier versions attacked every image
                    assert value == 0
                    continue
                earlier = tuple("locked" if word == "dw_box" else word for word in path)
                assert before.get(path, before.get(earlier)) == value, (name, key, *path)


def test_a_page_is_written_between_its_markers_alone(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables.KINDS, "words", lambda runs, *words: f"| {runs} {words} |")
    kept = "<!-- table: never_run words -->\nkept\n<!-- end -->\n"
    page = f"a\n<!-- table: addt_primary words b c -->\nold\n<!-- end -->\nb\n{kept}"
    new = "a\n<!-- table: addt_primary words b c -->\n| addt_primary ('b', 'c') |\n<!-- end -->\n"
    assert tables.rewritten(page) == f"{new}b\n{kept}"
    assert tables.rewritten(page.replace("old\n", "")) == f"{new}b\n{kept}"
    with pytest.raises(InputError, match="there is no kind word: allowed are defenses, "):
        tables.rewritten(page.replace("words", "word"))
    with pytest.raises(InputError, match="twice is no way of counting: allowed are single, vote"):
        tables.table("full_fashion_mnist compare twice uniform t=200")


@pytest.mark.parametrize("line", [line for line in COMMANDS if "--config" in line])
def test_a_run_can_be_made_again(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The program takes the line; what it would run is whole."""
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(line)[1:], "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)


def test_benchmarks_of_the_pages_exist() -> None:
    names = re.findall(r"^python (\S+\.py)", "\n".join(COMMANDS), re.MULTILINE)
    assert names
    assert all((FOLDER.parent.parent / name).is_file() for name in names)
