"""A run's folder: append-only records, timings kept apart from them, and results."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hetpure.evaluation.protocol import Record

RECORDS, TIMING, RESULTS = "records.jsonl", "timing.jsonl", "results.json"


class RunFolder:
    """Where one evaluation writes. Seconds go to `timing.jsonl`, so that the records of two runs
    can be compared byte by byte."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append_records(self, records: Iterable[Record]) -> None:
        """Appends a finished block's lines, flushed to the disk."""
        self._append(RECORDS, [record.as_dict() for record in records])

    def append_timing(self, entry: dict[str, Any]) -> None:
        self._append(TIMING, [entry])

    def write_images(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Float32 images of one block, as `images/<name>.safetensors`."""
        folder = self.path / "images"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            folder / f"{name}.safetensors",
        )

    def write_results(self, results: dict[str, Any]) -> None:
        (self.path / RESULTS).write_text(json.dumps(results, indent=2) + "\n")

    def read_records(self) -> list[Record]:
        """Every record written so far."""
        return [Record(**entry) for entry in self._read(RECORDS)]

    def read_timing(self) -> list[dict[str, Any]]:
        return self._read(TIMING)

    def _append(self, name: str, entries: list[dict[str, Any]]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, name: str) -> list[dict[str, Any]]:
        lines = (self.path / name).read_text().splitlines()
        return [json.loads(line) for line in lines]
