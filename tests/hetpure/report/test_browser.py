"""Pages in a browser: no errors, nothing loaded, readable by everyone, sorted by the keyboard."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hetpure.__main__ import main
from hetpure.evaluation.run_results import write_results
from hetpure.report.run_page import run_page
from tests.hetpure.run_records import DRAWS, RIGHT_A, RIGHT_B, defended, lines, stored

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the extra browser is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    place = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    packed = subprocess.run(
        ["npm", "pack", "axe-core@4"], cwd=place, capture_output=True, text=True
    )
    if packed.returncode:
        pytest.skip("axe-core cannot be fetched")
    shutil.unpack_archive(place / packed.stdout.split()[-1], place)
    return (place / "package/axe.min.js").read_text("utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with everything on it, and that of a comparison."""
    place = tmp_path_factory.mktemp("pages")
    named = {"a" * 60: RIGHT_A, "second": RIGHT_B}
    records = [line for name, right in named.items() for line in defended(name, right)]
    records += [line for name in named for line in lines(name, "null", [DRAWS] * 40)]
    store = stored(place / "run", records, images=40)
    results = write_results(store)
    for defense in results["defenses"].values():
        defense["audit"] = [
            {"name": "black box", "verdict": verdict, "said": "accuracy is -40.0"}
            for verdict in ("PASS", "undecided", "WARN", "FAIL")
        ]
        defense["attacks"]["pgd"]["iterations"] = {"loss": [1.0, 2.0], "right": [0.9, 0.5]}
    results["run"]["audit"] = {"images": 16, "queries": 9, "tolerance": 0.05, "reference": False}
    results["config"] = "model: {}\n"
    (store.path / "report.html").write_text(run_page(store, results), "utf-8")
    with suppress(SystemExit):  # one of them is worse
        main(["compare", str(store.path), f"--html={place / 'board.html'}"])
    return {"run": store.path / "report.html", "board": place / "board.html"}


@pytest.mark.parametrize("name", ["run", "board"])
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_a_page_is_quiet_accessible_and_fits(
    name: str, width: int, scheme: str, browser: Any, axe: str, pages: dict[str, Path]
) -> None:
    """Nothing but the file is asked for; axe-core finds nothing, contrast (AA) included."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True
    )
    view, said, asked = context.new_page(), [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(pages[name].as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    dark = view.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    view.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    view.evaluate(axe)
    found = view.evaluate("axe.run()")["violations"]
    assert not found, json.dumps([(v["id"], v["nodes"][0]["html"]) for v in found])
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    context.close()


@pytest.mark.parametrize("name", ["run", "board"])
def test_a_printed_page_is_light_and_loses_nothing(
    name: str, browser: Any, pages: dict[str, Path]
) -> None:
    """On A4 with its margins, printed from a dark screen: no table is wider than the paper."""
    context = browser.new_context(viewport={"width": 720, "height": 1000}, color_scheme="dark")
    view = context.new_page()
    view.emulate_media(media="print")
    view.goto(pages[name].as_uri())
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert view.evaluate("document.documentElement.scrollWidth") <= 720
    context.close()


def test_a_table_is_sorted_by_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    """By tabs to the button and Enter; numbers as numbers, and back again."""
    view = browser.new_page()
    view.goto(pages["run"].as_uri())
    table = "#results table"
    reached = "document.activeElement.closest('th')?.textContent"
    for _ in range(100):
        view.keyboard.press("Tab")
        if view.evaluate(reached) == "robust single":
            break
    assert view.evaluate(reached) == "robust single"
    column = view.evaluate("document.activeElement.closest('th').cellIndex")

    def shown() -> list[float]:
        texts = view.locator(f"{table} >> nth=0 >> tbody tr").all_inner_texts()
        return [float(text.split("\t")[column].split()[0]) for text in texts]

    first = shown()
    assert len(set(first)) == 2
    view.keyboard.press("Enter")
    assert shown() == sorted(first)
    assert view.locator(f"{table} th[aria-sort=ascending]").count() == 1
    view.keyboard.press("Enter")
    assert shown() == sorted(first, reverse=True)
    view.close()
