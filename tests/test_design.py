"""docs/reference: the design's code runs; names of functions, words and commands are the code's."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import hetpure.purifiers
from hetpure.__main__ import COMMANDS
from hetpure.attacks.gradient import MaskPolicy
from hetpure.evaluation.protocol import Protocol
from hetpure.geometry import Norm
from hetpure.gradients import Policy
from hetpure.noise import Group
from hetpure.purifiers import Resampling
from tests.test_architecture import FLOORS

PAGES = Path(__file__).parent.parent / "docs" / "reference"
DESIGN = (PAGES / "design.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DESIGN, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return DESIGN.split(f"\n## {title}\n")[1].split("\n## ")[0]


NOTEBOOK, PLAN = blocks("python")


def test_an_evaluation_is_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a notebook, and again, as a run that goes on."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        namespace: dict[str, dict[str, Any]] = {}
        exec(NOTEBOOK, namespace)
        assert namespace["results"]["missing"] == 0
        assert namespace["results"]["defenses"]["plain"]["clean"]["single"]["n"] == 4


def test_the_plan_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PLAN, {})
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    shown = DESIGN.split(PLAN)[1].split("```\n")[2].splitlines()
    assert printed == shown and len(shown) == 6


def exists(name: str, path: str) -> bool:
    """Whether the file has a class, a function or a method of that dotted name."""
    place: Any = import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        place = getattr(place, part, None)
    return place is not None


def test_everything_is_where_the_page_says() -> None:
    places = re.findall(r"((?:`[\w.]+` and )?`[\w.]+`) in `([\w/]+\.py)`", DESIGN)
    assert len(places) > 15
    for names, path in places:
        for name in re.findall(r"`([\w.]+)`", names):
            assert exists(name, path), f"{name} in {path}"


def test_the_papers_lines_name_functions() -> None:
    """The last column of both algorithms' tables."""
    modules = {
        "The paper's algorithm beside the plan": (
            "hetpure.purifiers",
            "hetpure.purifiers.purifier",
            "hetpure.samplers",
            "hetpure.attention",
        ),
        "ADDT's update beside the code": ("hetpure.addt",),
    }
    for title, paths in modules.items():
        table = section(title).split("| done by |")[1].split("\n\n")[0]
        cells = [line.strip("|").split("|")[-1] for line in table.splitlines()]
        texts = [cell for cell in cells if " in `" not in cell]
        functions = {name for text in texts for name in re.findall(r"`([\w.]+)`", text)}
        assert len(functions) > 6
        for name in functions:
            assert any(exists(name, path.replace(".", "/")) for path in paths), name


def test_the_four_kinds_of_resampling_are_there() -> None:
    assert set(get_args(Resampling)) <= set(re.findall(r"^\| `(\w+)`", DESIGN, re.MULTILINE))
    purifiers = {name for name in hetpure.purifiers.__all__ if name.endswith("Purifier")}
    assert purifiers - {"Purifier"} <= set(re.findall(r"`(\w+Purifier)\b", DESIGN))


def test_the_drawing_has_every_module_of_the_floors() -> None:
    drawing = section("The floors")
    for floor in FLOORS:
        for name in floor:
            assert name.rpartition(".")[2] in drawing, name


def test_the_index_has_every_command_and_every_page() -> None:
    index = (PAGES / "README.md").read_text()
    assert re.findall(r"^\| `hetpure (\w+)` \|", index, re.MULTILINE) == list(COMMANDS)
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"^\| \[(\w+\.md)\]", index, re.MULTILINE)) == pages


def test_the_glossary_has_each_word_once_and_the_words_of_configs_and_results() -> None:
    text = (PAGES / "glossary.md").read_text()
    terms = re.findall(r"^- \*\*(.+?)\*\*: ", text, flags=re.MULTILINE)
    assert len(terms) == text.count("\n- ") == len(set(terms))
    choices = (Policy, MaskPolicy, Resampling, Group, Norm)
    words = {word for choice in choices for word in get_args(choice)} | {"single", "vote", "worst"}
    words |= {field.name for field in fields(Protocol)} | {"robust", "dw_box", "known"}
    assert words <= set(re.findall(r"`(\w+)`", text))
