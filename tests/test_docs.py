"""What the documents say is still so: commands, code, and the weights behind every table."""

import re
import shutil
from pathlib import Path

import pytest

from hetpure.images import read_image
from hetpure.weights import ASSETS, folder_hash

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ASSETS.glob("*/README.md")]
PROSE = [ROOT / "README.md", *(ROOT / "docs" / "guide").glob("*.md")]
LONGEST = 20  # words of a sentence, on the average of a page


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_quick_start_is_two_lines_to_paste() -> None:
    start = README.split("## Quick start")[1].split("\n## ")[0]
    found = re.findall(r"^```bash\n(.*?)^```", start, flags=re.MULTILINE | re.DOTALL)
    assert [block.count("\n") for block in found] == [1, 1]
    assert found[0].rstrip().endswith("python evaluate.py")
    assert found[1].rstrip().endswith("python -m pytest")


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(example, {})
    assert read_image("purified.png", (1, 28, 28)).std() > 0.05


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_were_made_with_the_packaged_weights(document: Path) -> None:
    """Each table cites its weights as `name@hash`; another hash means: make the table again, or say
    right behind it that those are older."""
    cited = re.findall(r"`(\w+)@([0-9a-f]{12})`(\s+\(\*\*older)?", document.read_text())
    for name, cited_hash, older in cited:
        packaged = folder_hash(ASSETS / name).startswith(cited_hash)
        assert packaged != bool(older), f"{document}: {name} has changed"


def test_every_packaged_network_is_behind_some_table() -> None:
    """README's and those of the experiments name the weights that they were made with."""
    pages = [README, *(page.read_text() for page in (ROOT / "docs" / "experiments").glob("*.md"))]
    cited = {name for page in pages for name, _ in re.findall(r"`(\w+)@([0-9a-f]{12})`", page)}
    assert cited == {path.name for path in ASSETS.iterdir() if path.is_dir()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_configs_exist(document: Path) -> None:
    text = document.read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if target.startswith("http"):
            continue
        page = document.parent / target if target else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{page}#{anchor}"
    for config in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / config).is_file(), config


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def sentences(text: str) -> list[str]:
    """The prose of a page: without code, tables, headings, pictures and targets of links. A
    paragraph or an entry of a list ends its sentence."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    parts = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) |(?<=[.!?])[*)\"`]*\s+(?=\W*[A-Z0-9])", text)
    return [part for part in parts if re.search(r"\w", part)]


@pytest.mark.parametrize("page", PROSE, ids=lambda path: path.name)
def test_sentences_are_short(page: Path) -> None:
    lengths = [len(re.findall(r"\S*\w\S*", part)) for part in sentences(page.read_text())]
    average = sum(lengths) / len(lengths)
    assert average <= LONGEST, f"{len(lengths)} sentences of {average:.1f} words on average"


@pytest.mark.parametrize("folder", sorted(ASSETS.iterdir()), ids=lambda path: path.name)
def test_packaged_weights_have_a_card_and_a_size(folder: Path) -> None:
    assert (folder / "README.md").is_file()
    limit = 3_000_000 if (folder / "model.safetensors").exists() else 5_000_000
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= limit
