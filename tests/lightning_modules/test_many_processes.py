"""Evaluations by several processes, killed ones, and folders that are not one's own."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evaluate
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.records import RunFolder
from lightning_modules.cli import run

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
_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def start(place: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`python evaluate.py` in a folder of its own; one thread a process, for equal arithmetic."""
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), "--config=config.yaml", *options],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def start_two(
    place: Path, *options: str, second: Path | None = None
) -> list[subprocess.Popen[str]]:
    """As torchrun does, but for watching over them: nobody kills one when the other has died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
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


@pytest.mark.parametrize("devices", [2, 3])
def test_many_processes_give_the_records_of_one(devices: int, alone: Path, tmp_path: Path) -> None:
    code, said = ended(start(tmp_path, f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert code == 0, said
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)
    folder = tmp_path / "runs" / "one"
    shares = [len(path.read_text().splitlines()) for path in folder.glob("records*.jsonl")]
    assert len(shares) > 1 and sum(shares) == len(records(alone)), "every sample once, by several"
    assert (folder / "report.md").is_file()


def test_processes_that_somebody_else_starts(alone: Path, tmp_path: Path) -> None:
    for process in start_two(tmp_path):
        code, said = ended(process)
        assert code == 0, said
    assert records(tmp_path) == records(alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_killed_process_the_same_command_goes_on(
    victim: int, alone: Path, tmp_path: Path
) -> None:
    """Killed once it has written something: the other ends by itself, and soon. What is left is
    then done by one process."""
    both = start_two(
        tmp_path,
        "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.timeout=0:00:20",
    )
    wait_for(tmp_path / "runs" / "one" / ("records.jsonl" if victim == 0 else "records.1.jsonl"))
    both[victim].kill()
    code, said = ended(both[1 - victim], 120)
    assert code == 2, said
    assert "start the same command again" in said and "Traceback" not in said
    finished = records(tmp_path)
    assert finished and all(record in records(alone) for record in finished)
    code, said = ended(start(tmp_path))
    assert code == 0, said
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)


def test_two_go_on_where_one_was_stopped(alone: Path, tmp_path: Path) -> None:
    """With as many threads as it had, whatever the launcher would give them."""
    one = start(tmp_path)
    wait_for(tmp_path / "runs" / "one" / "records.jsonl")
    one.send_signal(signal.SIGTERM)
    assert ended(one, 30)[0] == -signal.SIGTERM
    assert len(records(tmp_path)) < len(records(alone))
    two = start(tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp", OMP_NUM_THREADS="2")
    code, said = ended(two)
    assert code == 0, said
    assert records(tmp_path) == records(alone)


def test_what_the_first_process_refuses_ends_all(alone: Path, tmp_path: Path) -> None:
    """Other weights than the run began with: one line each, and nobody waits for anybody."""
    shutil.copytree(alone / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "one" / "sessions.jsonl"
    session = json.loads(path.read_text().splitlines()[0])
    session["weights"]["classifier"] = "0" * 64
    path.write_text(json.dumps(session) + "\n")
    first, second = (ended(process, 60) for process in start_two(tmp_path))
    assert (first[0], second[0]) == (2, 2)
    assert "began with other weights (classifier)" in first[1].splitlines()[-1]
    assert "another process was refused" in second[1].splitlines()[-1]


def test_a_failure_ends_all(tmp_path: Path) -> None:
    """A certificate that does not pass, in whichever process."""
    found = [ended(p, 120) for p in start_two(tmp_path, "--model.certificate_bound=1e-15")]
    assert [code for code, _ in found] == [2, 2]
    assert any("certificate" in said and "1e-15" in said for _, said in found)
    assert all("Traceback" not in said for _, said in found)


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists(), f"{path} was not written in {seconds} s"


def _evaluate(place: Path) -> None:
    """In a process forked from one that has imported everything already."""
    import torch

    torch.set_num_threads(1)
    os.chdir(place)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    evaluate.main(["--config=config.yaml"])


def test_twenty_kills_lose_nothing(alone: Path, tmp_path: Path) -> None:
    """Killed at random points, ten of them from the start on and ten in the work, and started again
    each time: every record once, equal to the undisturbed run's, and what was finished where it
    was."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evaluate"])
    chance, kills = random.Random(0), 0
    written: list[str] = []
    place, folder = tmp_path / "runs" / "one", RunFolder(tmp_path / "runs" / "one")
    (tmp_path / "config.yaml").write_text(CONFIG)
    while kills < 20:
        process = context.Process(target=_evaluate, args=(tmp_path,))
        process.start()
        kept = _bytes(place)
        until = time.monotonic() + 60
        while kills % 2 and process.is_alive() and _bytes(place) == kept:
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.5 if kills % 2 else 4))
        before = folder.read_records()
        alive = process.is_alive()
        process.kill()
        process.join()
        after = folder.read_records()
        assert all(record in after for record in before), "a finished record was lost"
        # Of a block of two one line may be without the other, and go at the next start.
        now = _lines(place)
        assert now[: len(written[:-1])] == written[:-1], "what was finished stays where it is"
        written = now
        if alive:
            kills += 1
        else:  # it had finished: another one
            assert process.exitcode == 0
            assert records(tmp_path) == records(alone)
            assert not _twice(place)
            written = []
            shutil.rmtree(place)
    process = context.Process(target=_evaluate, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)
    assert _lines(place)[: len(written[:-1])] == written[:-1]
    assert not _twice(place)


def _lines(place: Path) -> list[str]:
    """The whole ones."""
    path = place / "records.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _bytes(place: Path) -> int:
    path = place / "records.jsonl"
    return path.stat().st_size if path.exists() else 0


def _twice(place: Path) -> int:
    """Lines of records that are there already."""
    lines = (place / "records.jsonl").read_text().splitlines()
    return len(lines) - len(set(lines))


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    """Also where a process is left of a run whose first one is gone."""
    folder = RunFolder(tmp_path / "runs" / "one")
    for owner in (folder, RunFolder(folder.path, process=1)):
        with owner.locked():
            code, said = ended(start(tmp_path))
        assert code == 2 and "another evaluation is writing there" in said.splitlines()[-1]
    with folder.locked():
        pass  # free again


def test_a_folder_that_not_all_see_is_refused_at_the_start(alone: Path, tmp_path: Path) -> None:
    """As on two machines that share no disk."""
    for place in ("here", "there"):  # a run that was stopped, copied to both
        shutil.copytree(alone / "runs", tmp_path / place / "runs")
    both = start_two(tmp_path / "here", second=tmp_path / "there")
    found = [ended(process, 90) for process in both]
    assert [code for code, _ in found] == [2, 2]
    assert "process 1 sees nothing of the first one's" in found[1][1].splitlines()[-1]
    assert "another process does not see" in found[0][1].splitlines()[-1]


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    one = start(tmp_path)
    wait_for(tmp_path / "runs" / "one" / "records.jsonl")
    one.send_signal(signal.SIGINT)
    code, said = ended(one, 30)
    assert code == 130 and "stopped; records and checkpoints that were written are kept" in said
    assert "Traceback" not in said


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    one = start(tmp_path)
    wait_for(tmp_path / "runs" / "one" / "records.jsonl")
    folder = RunFolder(tmp_path / "runs" / "one")
    with pytest.raises(InputError, match="another evaluation"), folder.locked():
        pass
    one.kill()
    one.wait()
    with folder.locked():
        pass


def test_a_full_disk_is_one_line_and_loses_nothing(alone: Path, tmp_path: Path) -> None:
    """The system lets no file grow beyond some bytes: the journal is torn in a line."""
    limit = 12_000
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
    code += "sys.argv=['evaluate.py', '--config=config.yaml'];"
    code += f"runpy.run_path({str(ROOT / 'evaluate.py')!r}, run_name='__main__')"
    (tmp_path / "config.yaml").write_text(CONFIG)
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert "File too large" in found.stderr.splitlines()[-1]
    path = tmp_path / "runs" / "one" / "records.jsonl"
    torn = path.read_text()
    assert len(torn) == limit and not torn.endswith("\n")
    assert ended(start(tmp_path))[0] == 0
    kept = torn.split("\n")[:-1]
    assert _lines(path.parent)[: len(kept) - 1] == kept[:-1], "all but a part of a block of two"
    assert not _twice(tmp_path / "runs" / "one")
    assert records(tmp_path) == records(alone)


@pytest.mark.parametrize("said", ["Read-only file system", "No space left on device"])
def test_a_disk_that_refuses_is_one_line(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the system answers to opening a file there; as root, permissions refuse nothing."""
    codes = {os.strerror(code): code for code in (errno.EROFS, errno.ENOSPC)}

    def refuse(self: Path, *arguments: Any, **settings: Any) -> None:
        raise OSError(codes[said], said, str(self))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, ["--config=config.yaml"])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_other_devices_may_go_on_and_other_settings_may_not(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "runs", tmp_path / "runs")
    code, said = ended(start(tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert code == 0, said
    assert records(tmp_path) == records(alone)
    other = "--model.attack.steps=1"
    code, said = ended(start(tmp_path, other))
    assert code == 2 and "model.attack.init_args.steps: 2, now 1" in said
    code, said = ended(start(tmp_path, other, "--resume=force"))
    assert code == 0 and "one-2" in said
    assert records(tmp_path) == records(alone)
    forced = RunFolder(tmp_path / "runs" / "one-2").read_records()
    assert len(forced) == len(records(alone)) and forced != records(alone)


def test_results_are_made_anew_from_the_folder(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "runs", tmp_path / "runs")
    folder = tmp_path / "runs" / "one"
    expected = {name: (folder / name).read_text() for name in ("results.json", "report.md")}
    for name in expected:
        (folder / name).unlink()
    command = [sys.executable, "-m", "hetpure", "report", "runs/one"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "masked" in found.stdout
    assert {name: (folder / name).read_text() for name in expected} == expected
    (folder / "timing.jsonl").unlink()  # a run may be stopped before the clock was asked
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert "ms an image" not in (folder / "report.md").read_text()
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert "is not finished (1 results are missing" in found.stderr
