"""The store of a run: a block is there whole or not at all, and what is not this run's is named."""

import errno
import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hetpure.errors import InputError
from hetpure.evaluation.identity import differences, plain
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.store import Finished, Job, Store
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier

CHECK: dict[str, Any] = {
    "gradient": {}, "gradient_checks": {}, "sameness": [], "strikes": True, "seconds": 1.0,
}  # fmt: skip
JOB = Job("a row", "PGD, soft mask", 3)
RECORD = Record("a row", JOB.attack, 2**32 - 1, 1, [1, 2], [0, 3], 0, 0.1, 1, None, 9, None, [])
FINISHED = Finished([RECORD], [{"iteration": 0, "loss": 1.5}], 2.5, "abc-dirty")
IMAGES = torch.full((1, 1, 2, 2), 0.25)
RUN: dict[str, Any] = {
    "identity": {"config": {"seed": 0, "attack": {"steps": 2}}, "weights": {"classifier": "c"}},
    "facts": {},
    "block": 2,
    "execution": {},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def put(store: Store) -> Path:
    """The file of a finished job."""
    store.put(JOB, FINISHED, IMAGES)
    (path,) = (store.path / "blocks").iterdir()
    return path


def test_what_is_put_is_read(store: Store) -> None:
    assert not store.has(JOB)
    put(store)
    assert store.has(JOB) and store.get(JOB) == FINISHED
    images, samples = store.images(JOB.row, JOB.attack)
    assert torch.equal(images, IMAGES) and samples.tolist() == [2**32 - 1]


def test_names_that_look_alike_are_two_files(store: Store) -> None:
    put(store)
    assert not store.has(Job("a-row", JOB.attack, 3)) and not store.has(Job("a row", "PGD", 3))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def foreign(path: Path) -> None:
    path.write_text("a note of somebody's")


def of_old(path: Path) -> None:
    """A file of images alone, as schema 3 saved them."""
    from safetensors.torch import save_file

    save_file({"images": torch.zeros(1, 1, 2, 2)}, path, {"row": JOB.row, "attack": JOB.attack})


@pytest.mark.parametrize("harm", [damage, foreign, of_old])
def test_a_file_that_is_no_block_is_one_line(harm: Callable[[Path], None], store: Store) -> None:
    path = put(store)
    harm(path)
    with pytest.raises(InputError, match=f"{path.name} .*delete it") as error:
        store.get(JOB)
    assert "\n" not in str(error.value)


def test_what_is_found_of_a_row_and_a_strike_are_two_files(store: Store) -> None:
    """A check that ends after the strike takes nothing back."""
    assert store.get_check("a") is None and store.struck("a") is None
    store.strike("a", "why")
    store.put_check("a", CHECK)
    assert store.struck("a") == "why" and store.get_check("a") == {"row": "a", **CHECK}
    assert store.get_check("b") is None and store.struck("b") is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", "7"])
def test_files_that_are_damaged_are_one_line(content: str, store: Store) -> None:
    store.put_check("a", CHECK)
    store.strike("a", "why")
    store.put_measured({"latency": {}})
    store.begin(RUN)
    for path in (p for p in store.path.rglob("*.json") if content != "{}" or p.stem != "measured"):
        path.write_text(content)
    reads = (lambda: store.get_check("a"), lambda: store.struck("a"), store.read_run)
    why = {"{": "Expecting", "{}": "it lacks '"}.get(content, "it holds no JSON object")
    for read in (*reads, store.measured) if content != "{}" else reads:
        with pytest.raises(InputError, match=rf"is damaged \({why}.*\): (delete|restore) it"):
            read()


def test_another_blocks_file_under_a_jobs_name_is_one_line(store: Store) -> None:
    path = put(store)
    path.rename(path.with_name(path.name.replace("00003", "00004")))
    with pytest.raises(InputError, match="is no file of this block: delete it"):
        store.get(Job(JOB.row, JOB.attack, 4))


def test_blocks_without_their_run_are_nobodys(store: Store) -> None:
    """Whose they are only `run.json` says."""
    put(store)
    with pytest.raises(InputError, match=r"holds blocks of a run whose run\.json is gone"):
        store.begin(RUN)


def test_one_run_goes_on_and_another_is_told_the_difference(store: Store) -> None:
    store.begin(RUN)
    store.begin(RUN | {"facts": {"a": 5}})
    run = store.read_run()
    assert run is not None and run["facts"] == {"a": 5}
    identity = {"config": {"seed": 1, "attack": {"steps": 3}}, "weights": {"classifier": "c"}}
    with pytest.raises(InputError, match="config.seed: 0, now 1; config.attack.steps: 2, now 3"):
        store.begin(RUN | {"identity": identity})
    assert store.read_run() == run, "nothing is lost"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("records.jsonl", "{}", "of an earlier version"),
        ("records.1.jsonl", "{}", "of an earlier version"),
        ("run.json", json.dumps({"schema": 99}), "of schema 99, this version writes 4"),
        ("run.json", '{"schema": 4', "is damaged"),
        ("run.json", "[]", "is damaged"),
    ],
)
def test_a_run_of_another_version_is_refused(
    name: str, content: str, message: str, store: Store
) -> None:
    store.path.mkdir()
    (store.path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        store.begin(RUN)
    assert (store.path / name).read_text() == content


def _hold(path: Path, held: Any, free: Any) -> None:
    with Store(path).locked():
        held.set()
        free.wait(60)


def test_one_process_holds_the_folder_and_its_end_frees_it(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.path, held, free))
    process.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="another evaluation is writing there"), store.locked():
        pass
    process.kill()
    process.join()
    part = store.path / "blocks" / ".x.1.part"
    part.parent.mkdir()
    part.write_bytes(b"half of a block")
    with store.locked():
        assert not part.exists(), "what a kill left is swept"


def test_without_locks_no_file_of_a_run_beside_it_is_swept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's file system: who else writes there is not known."""

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    part = store.path / "blocks" / ".x.1.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half of a block of another process")
    with store.locked():
        assert part.exists()


def test_a_disk_that_refuses_leaves_nothing_half_written(store: Store) -> None:
    """A folder in the way: the system refuses the rename."""
    path = put(store)
    path.unlink()
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(OSError, match="directory"):
        store.put(JOB, FINISHED, IMAGES)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_two_ways_to_write_one_config_are_one_identity() -> None:
    written = UniformPurifier(strength=Number("1/10"))
    assert plain(DefenseConfig(written, "ddpm")) == plain(
        DefenseConfig(UniformPurifier(strength=0.1), denoiser="ddpm", gradient="auto")
    )
    assert plain(written)["class"].endswith("UniformPurifier")
    json.dumps(plain(DefenseConfig(written)))
    other = plain(DefenseConfig(UniformPurifier(strength=0.2), "ddpm"))
    assert differences(plain(DefenseConfig(written, "ddpm")), other) == [
        "purifier.strength: 0.1, now 0.2"
    ]
    assert differences({"a": 1}, {"a": 1, "b": {"c": 2}}) == ["b: None, now {'c': 2}"]
