"""What a run has computed, on the disk. A finished block of a row under an attack is one file that
was written aside and renamed: it exists, so it is done."""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from hetpure.disk import make_folder, write_whole
from hetpure.errors import InputError
from hetpure.evaluation.identity import differences
from hetpure.evaluation.protocol import Record, parsed
from hetpure.saved_images import (
    BLOCKS,
    block_path,
    file_stem,
    read_block,
    read_header,
    save_images,
    saved_images,
)

SCHEMA = 4
RUN, CONFIG, LOCK, MEASURED = "run.json", "config.yaml", "lock", "measured.json"
RECORDS, RESULTS, REPORT, PAGE = "records.jsonl", "results.json", "report.md", "report.html"
CHECKS, STRUCK = "gradient_checks", "struck"
EARLIER = "records*.jsonl", "trials.jsonl"  # what runs and searches of earlier versions left
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Job:
    """The work that one file stands for: a row under an attack (or `clean`) on a block."""

    row: str
    attack: str
    block: int


@dataclass(frozen=True)
class Finished:
    """What a finished job left: its records, what each of its iterations said, its seconds, and the
    commit of the code that computed it."""

    records: list[Record]
    iterations: list[dict[str, float]]
    seconds: float
    commit: str | None


class Store:
    """The folder of one run. Any number of processes may write to it: two that compute one job
    write the same file.

    Args:
        path: the folder; the first write makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, run: Mapping[str, Any]) -> None:
        """Takes the folder for a run: its `identity`, and whatever else its results need. A run of
        the same identity goes on with what is there. InputError where another one is there."""
        before = self.read_run()
        if before is not None:
            self.check_same(before["identity"], run["identity"], f"{self.path} holds a run with")
        write_whole(self.path / RUN, json_bytes({"schema": SCHEMA, **run}))

    def check_same(self, before: Any, now: Any, what: str) -> None:
        """InputError, which begins with `what`, where two identities differ."""
        if lines := differences(before, now):
            raise InputError(
                f"{what} another {'; '.join(lines[:5])}: give another run a folder of its own, or"
                " the same settings to go on with this one"
            )

    def read_run(self) -> dict[str, Any] | None:
        """What `begin` wrote; None in a folder that no run has taken. InputError where the run is
        of another version, or its file is damaged."""
        path = self.path / RUN
        run = _read_json(path, "schema", advice="restore it")
        if run is None:
            if any(path for name in EARLIER for path in self.path.glob(name)):
                raise InputError(
                    f"{self.path} holds a run of an earlier version, which can be reported and"
                    " compared but not gone on with: give a run another name"
                )
            if any((self.path / BLOCKS).glob("*.safetensors")):
                raise InputError(
                    f"{self.path} holds blocks of a run whose {RUN} is gone: restore it, or give a"
                    " run another name"
                )
            return None
        if run["schema"] != SCHEMA:
            raise InputError(
                f"{self.path} holds a run of schema {run['schema']}, this version writes {SCHEMA}:"
                " give a run another name"
            )
        run = _read_json(path, "identity", "block", "execution", advice="restore it") or {}
        for key, kind in {"identity": dict, "block": int, "execution": dict}.items():
            if not isinstance(run[key], kind):
                raise InputError(f"{path} is damaged ({key} is no {kind.__name__}): restore it")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The system takes the lock away when the process ends,
        however it does. InputError where another process holds it: both would do the same work."""
        make_folder(self.path)
        lock = FileLock(self.path / LOCK)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path}: another evaluation is writing there: wait for its end, stop it, or"
                " give a run another name"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield  # two runs may do work twice, which harms nothing
            return
        with held:
            for part in self.path.rglob(".*.part"):  # of processes that were killed
                part.unlink(missing_ok=True)
            yield

    def has(self, job: Job) -> bool:
        """Whether the job is done."""
        return block_path(self.path, job.row, job.attack, job.block).exists()

    def put(self, job: Job, finished: Finished, adversarial: Tensor) -> None:
        """Keeps what a job left, and its adversarial images (N, C, H, W)."""
        header = {name: json.dumps(value) for name, value in asdict(finished).items()}
        header["block"] = str(job.block)
        samples = torch.tensor([record.sample for record in finished.records])
        save_images(self.path, job.row, job.attack, job.block, adversarial, samples, header)

    def get(self, job: Job) -> Finished:
        """What a finished job left. InputError where its file is damaged, or another program's."""
        path = block_path(self.path, job.row, job.attack, job.block)
        header = read_header(path)
        here = (job.row, job.attack, str(job.block))
        if tuple(header.get(name) for name in ("row", "attack", "block")) != here:
            raise InputError(f"{path} is no file of this block: delete it, and it is computed anew")
        try:
            left = {field.name: json.loads(header[field.name]) for field in fields(Finished)}
            finished = Finished(**left | {"records": [parsed(line) for line in left["records"]]})
            if any((r.defense, r.attack) != here[:2] for r in finished.records):
                raise ValueError("its records are of another row or attack")
            return finished
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is no block of this version ({error}): delete it, and it is computed anew"
            ) from None

    def images(self, row: str, attack: str) -> tuple[Tensor, Tensor]:
        """The adversarial images (N, C, H, W) of a row under an attack, and their sample ids."""
        return saved_images(self.path, row, attack)

    def block_images(self, job: Job) -> Tensor:
        """The adversarial images (N, C, H, W) of a finished job."""
        return self.saved_block(job)[0]

    def saved_block(self, job: Job) -> tuple[Tensor, Tensor]:
        """The adversarial images (N, C, H, W) of a finished job, and their sample ids (N,)."""
        return read_block(block_path(self.path, job.row, job.attack, job.block))

    def put_check(self, row: str, check: Mapping[str, Any]) -> None:
        """Keeps what the check of a row's gradients gave."""
        write_whole(self._path(CHECKS, row), json_bytes({"row": row, **check}))

    def get_check(self, row: str) -> dict[str, Any] | None:
        """None where it was not checked yet."""
        keys = ("gradient", "gradient_checks", "sameness", "strikes", "seconds")
        return _read_json(self._path(CHECKS, row), *keys)

    def strike(self, row: str, reason: str) -> None:
        """From now on the row is not evaluated any more, whatever else is found of it."""
        write_whole(self._path(STRUCK, row), json_bytes({"row": row, "reason": reason}))

    def struck(self, row: str) -> str | None:
        """Why a row is not evaluated any more: it was struck out, or the check of its gradients
        failed and its attack follows them; a defence that is not the same for everyone is told
        first, which explains that. None where it is evaluated."""
        content = _read_json(self._path(STRUCK, row), "reason")
        if content is not None:
            return str(content["reason"])
        check = self.get_check(row)
        if check is None or not check["strikes"]:
            return None
        gradients = [c["failure"] for c in check["gradient_checks"].values() if c.get("failure")]
        same = [f"{c['name']}: {c['said']}" for c in check["sameness"] if c["verdict"] == "FAIL"]
        return "; ".join(same + gradients) if gradients else None

    def put_measured(self, measured: Mapping[str, Any]) -> None:
        """Latency and memory, which differ each time and are in no record."""
        write_whole(self.path / MEASURED, json_bytes(measured))

    def measured(self) -> dict[str, Any]:
        """Empty where nothing was measured yet."""
        return _read_json(self.path / MEASURED) or {}

    def _path(self, kind: str, row: str) -> Path:
        return self.path / kind / f"{file_stem(row)}.json"


def _read_json(path: Path, *keys: str, advice: str = "delete it") -> dict[str, Any] | None:
    """What a file of a run holds; None where there is none. InputError with what to do unless it
    has these keys."""
    if not path.exists():
        return None
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it lacks {missing[0]!r}")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {advice}") from None
    return content


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """As files of a run hold it."""
    return (json.dumps(content, indent=2) + "\n").encode()
