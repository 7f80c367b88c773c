"""examples/: each script runs, and says what is so."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hetpure.images import read_image

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "tour.ipynb"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {"one_image", "own_classifier", "own_purifier", "own_attack"}


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "purified.png"
    example("one_image").main(str(EXAMPLES.parent / "docs" / "example.png"), str(target))
    printed = capsys.readouterr().out
    assert printed.count("purified, seed") == 3 and "as it is: Bag" in printed
    assert read_image(target, (1, 28, 28)).std() > 0.05


def test_a_classifier_of_ones_own() -> None:
    found = example("own_classifier").main(images=8)
    assert found["bare, clean"] >= 0.5  # a class's mean is far better than chance, 0.1
    assert found["bare, pgd_linf"] <= found["bare, clean"]
    assert len(found) == 4


def test_a_purifier_of_ones_own() -> None:
    accuracy, error = example("own_purifier").main(images=8)
    assert accuracy >= 0.5
    assert error < 1e-5


def test_an_attack_of_ones_own() -> None:
    """On two images: it finds what plain images do not have."""
    clean, robust = example("own_attack").main(images=2, steps=3)
    assert 0 <= robust <= clean <= 10


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In under three minutes on two quiet cores; the limit here is one of a cell."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=170, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert any("image/png" in str(cell.get("outputs")) for cell in notebook.cells)
