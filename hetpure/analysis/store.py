"""What analyses have computed, in the folder of a run. A block of a row under an analysis is one
file that was renamed when it was whole: it exists, so it is done."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hetpure.analysis.analysis import Analysis, Record, Summary
from hetpure.analysis.lines import csv_text
from hetpure.analysis.subject import Subject
from hetpure.defense import count_network_calls
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.description import Images
from hetpure.evaluation.identity import plain
from hetpure.evaluation.provenance import commit
from hetpure.evaluation.store import json_bytes
from hetpure.saved_images import file_stem

FOLDER, BLOCKS = "analysis", "blocks"
NUMBERS, TABLE, PICTURE = "summary.json", "lines.csv", "picture.png"
BLOCK = 8  # images of a block at most: whole blocks are kept where more images are asked for later


@dataclass(frozen=True)
class Part:
    """The work that one file stands for: a row under an analysis on images start to stop - 1."""

    analysis: Analysis
    row: str
    start: int
    stop: int


class AnalysisStore:
    """The folder of a run's analyses.

    Args:
        run: the run's folder, whose config all analyses share.
        block: images that the run computes at once; an analysis takes no more.
    """

    def __init__(self, run: Path, block: int = BLOCK) -> None:
        self.path = run / FOLDER
        self.block = min(BLOCK, block)

    def parts(self, analysis: Analysis, row: str, count: int) -> list[Part]:
        """A row's parts on the first `count` images."""
        return [
            Part(analysis, row, start, min(start + self.block, count))
            for start in range(0, count, self.block)
        ]

    def folder(self, analysis: Analysis) -> Path:
        """Where an analysis lies."""
        return self.path / analysis.name

    def _path(self, part: Part) -> Path:
        """Other settings are another file."""
        settings = json.dumps(plain(part.analysis))
        name = f"{part.start:05d}-{part.stop:05d}-{file_stem(part.row, settings)}.json"
        return self.folder(part.analysis) / BLOCKS / name

    def has(self, part: Part) -> bool:
        """Whether the part is done."""
        return self._path(part).exists()

    def put(self, part: Part, records: Sequence[Record], calls: int, seconds: float) -> None:
        """Keeps a part's records, its network calls and its seconds."""
        content = {
            "row": part.row,
            "settings": plain(part.analysis),
            "network_calls": calls,
            "seconds": seconds,
            "commit": commit(),
            "records": list(records),
        }
        write_whole(self._path(part), json_bytes(content))

    def forget(self, analysis: Analysis) -> None:
        """Takes away what was said of records, and leaves the records."""
        for name in (NUMBERS, TABLE, PICTURE):
            (self.folder(analysis) / name).unlink(missing_ok=True)

    def get(self, part: Part) -> dict[str, Any]:
        """What a finished part left. InputError where its file is damaged."""
        path = self._path(part)
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if len(content["records"]) != part.stop - part.start or content["row"] != part.row:
                raise ValueError("it holds other images")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({error}): delete it, and it is computed anew"
            ) from None
        return content

    def write(
        self, analysis: Analysis, summary: Summary, done: Sequence[Mapping[str, Any]]
    ) -> None:
        """The summary as JSON and as CSV, with what its parts cost."""
        content = {
            "analysis": analysis.name,
            "settings": plain(analysis),
            "network_calls": sum(part["network_calls"] for part in done),
            "seconds": sum(part["seconds"] for part in done),
            **asdict(summary),
        }
        write_whole(self.folder(analysis) / NUMBERS, json_bytes(content))
        write_whole(self.folder(analysis) / TABLE, csv_text(summary.lines).encode())


@torch.enable_grad()
def examine(part: Part, subject: Subject, images: Images, store: AnalysisStore) -> None:
    """Computes the records of a part, if they are not there."""
    if store.has(part):
        return
    start = time.perf_counter()
    block = images.read(range(part.start, part.stop))
    with count_network_calls(subject.defense) as calls:
        records = part.analysis.examine(subject, block)
    store.put(part, records, sum(calls), time.perf_counter() - start)


def summarise(
    analysis: Analysis,
    rows: Sequence[str],
    count: int,
    store: AnalysisStore,
    notes: Sequence[str] = (),
) -> Summary:
    """What an analysis says of these rows on the first `count` images, from what the store has,
    with these notes beside its own; it is written there too."""
    done = {row: [store.get(part) for part in store.parts(analysis, row, count)] for row in rows}
    records: dict[str, list[Record]] = {
        row: [record for part in of_row for record in part["records"]]
        for row, of_row in done.items()
    }
    summary = analysis.summarise(records)
    summary.notes.extend(notes)
    store.write(analysis, summary, [part for of_row in done.values() for part in of_row])
    return summary
