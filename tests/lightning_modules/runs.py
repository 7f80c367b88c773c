"""Evaluations as programs of their own, for tests of what becomes of their folders."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.records import RunFolder
from tests.ports import next_port

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
model:
  run: one
  classifier: fashion_mnist_wrn
  denoisers: {ddpm: fashion_mnist_ddpm}
  defenses:
    plain: {}
    masked:
      denoiser: ddpm
      mask: {threshold: 0.5}
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {t_large: 0.1, t_small: 0.05, steps: 20, resampling: none}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {epsilon: 16/255, steps: 2, step_size: 4/255, eot_samples: 2, mask: recomputed}
  attacks:
    square:
      attack:
        class_path: hetpure.attacks.Square
        init_args: {epsilon: 16/255, steps: 2, eot_samples: 1}
      limit: 3
  protocol: {report_draws: 3, selection_draws: 2}
  audit: {images: 2, queries: 2}
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 8, batch_size: 2}
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


Ended = tuple[int, str]
started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Of the programs of a test, which lead groups of their own, nor of the processes of theirs."""
    yield
    while started:
        process = started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def start(
    place: Path, *options: str, command: Sequence[str] = (sys.executable,), **environment: str
) -> subprocess.Popen[str]:
    """`python evaluate.py` in a folder of its own; one thread a process, for equal arithmetic."""
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(CONFIG)
    process = subprocess.Popen(
        [*command, str(ROOT / "evaluate.py"), "--config=config.yaml", *options],
        cwd=place,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_PORT": str(next_port())}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def start_two(
    place: Path, *options: str, second: Path | None = None
) -> list[subprocess.Popen[str]]:
    """As torchrun does, but for watching over them: nobody kills one when the other has died."""
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(next_port()), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "one"}  # fmt: skip
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", *options)
    return [
        start(own, *options, **told, RANK=str(n), LOCAL_RANK=str(n))
        for n, own in enumerate((place, second or place))
    ]


def ended(process: subprocess.Popen[str], seconds: float = 240) -> Ended:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def records(place: Path) -> list[Record]:
    return RunFolder(place / "runs" / "one").read_records()


def results(place: Path) -> dict[str, Any]:
    """Without what depends on the clock."""
    found: dict[str, Any] = json.loads((place / "runs" / "one" / "results.json").read_text())
    for row in found["defenses"].values():
        row["cost"] = {k: v for k, v in row["cost"].items() if "seconds" not in k}
    return {key: found[key] for key in ("run", "defenses", "samples", "notes", "weaker_than_full")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process, whole."""
    place = tmp_path_factory.mktemp("alone")
    code, said = ended(start(place))
    assert code == 0, said
    return place


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists(), f"{path} was not written in {seconds} s"


def whole_lines(place: Path) -> list[str]:
    """The whole ones."""
    path = place / "records.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def size(place: Path) -> int:
    path = place / "records.jsonl"
    return path.stat().st_size if path.exists() else 0


def twice(place: Path) -> int:
    """Lines of records that are there already."""
    lines = (place / "records.jsonl").read_text().splitlines()
    return len(lines) - len(set(lines))
