"""The records that the pages of docs/experiments are made from: of a run `NAME.records.jsonl.xz`
and `NAME.results.json.xz`, of a benchmark `NAME.json.xz`."""

import json
import lzma
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.reading import RecordedRun, earlier_results, parse_records, read_run
from hetpure.evaluation.store import RECORDS, RESULTS, SCHEMA

README = Path(__file__).parent.parent / "README.md"
RECIPES = README.parent / "docs" / "recipes.md"
EXPERIMENTS = README.parent / "docs" / "experiments"
FOLDER = EXPERIMENTS / "records"
# Names of checks in the words of earlier versions.
TODAY = (("gradient certificate", "gradient check"), ("locked noise", "DW-box"))


def has_records(name: str) -> bool:
    """Whether records of this run or benchmark were kept."""
    return any((FOLDER / f"{name}.{kind}.xz").exists() for kind in (RECORDS, "json"))


def unpacked(name: str) -> str:
    """The text of a packed file."""
    text = lzma.decompress((FOLDER / f"{name}.xz").read_bytes()).decode()
    for earlier, today in TODAY:
        text = text.replace(earlier, today)
    return text


def records_of(run: str) -> list[Record]:
    """The records of a run, by sample."""
    name = f"{run}.{RECORDS}"
    return parse_records({name: unpacked(name)})


def saved_results(run: str) -> dict[str, Any]:
    """`results.json` as the run wrote it."""
    results: dict[str, Any] = json.loads(unpacked(f"{run}.{RESULTS}"))
    return results


def results_of(run: str) -> dict[str, Any]:
    """`results.json` in the words of this version: of a run of an earlier one its records are
    counted again."""
    saved = saved_results(run)
    if saved["schema"] == SCHEMA:
        return saved
    with TemporaryDirectory() as folder:
        return earlier_results(_written(run, Path(folder)))


def recorded_run(run: str) -> RecordedRun:
    """A run as `hetpure compare` reads it."""
    with TemporaryDirectory() as folder:
        read = read_run(_written(run, Path(folder)))
    return replace(read, finished=not saved_results(run).get("missing", 0))


def _written(run: str, folder: Path) -> Path:
    """A run's folder in `folder`, with its records and results."""
    path = folder / run
    path.mkdir()
    for name in (RECORDS, RESULTS):
        (path / name).write_text(unpacked(f"{run}.{name}"))
    return path
