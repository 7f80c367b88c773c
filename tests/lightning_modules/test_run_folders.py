"""Folders of evaluations: locks, disks that refuse, runs that go on and those that may not."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evaluate
from hetpure.evaluation.records import RunFolder
from lightning_modules.cli import run
from tests.lightning_modules.runs import (
    CONFIG,
    ROOT,
    alone,
    ended,
    none_left,
    records,
    start,
    twice,
    wait_for,
    whole_lines,
)

__all__ = ["alone", "none_left"]  # fixtures


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    """Also where a process is left of a run whose first one is gone."""
    folder = RunFolder(tmp_path / "runs" / "one")
    for owner in (folder, RunFolder(folder.path, process=1)):
        with owner.locked():
            code, said = ended(start(tmp_path))
        assert code == 2 and "another evaluation is writing there" in said.splitlines()[-1]
    with folder.locked():
        pass  # free again


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    one = start(tmp_path)
    wait_for(tmp_path / "runs" / "one" / "records.jsonl")
    one.send_signal(signal.SIGINT)
    code, said = ended(one, 30)
    assert "go on with --model.run=one" in said
    assert code == 130 and "stopped; records and checkpoints that were written are kept" in said
    assert "Traceback" not in said


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    one = start(tmp_path)
    wait_for(tmp_path / "runs" / "one" / "records.jsonl")
    code, said = ended(start(tmp_path))
    assert code == 2 and "another evaluation is writing there" in said.splitlines()[-1]
    assert one.poll() is None, "the first one is not disturbed"
    one.kill()
    one.wait()
    with RunFolder(tmp_path / "runs" / "one").locked():
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
    assert whole_lines(path.parent)[: len(kept) - 1] == kept[:-1], "all but a part of a block"
    assert not twice(tmp_path / "runs" / "one")
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


@pytest.mark.parametrize("code", [errno.EROFS, errno.ESTALE], ids=os.strerror)
def test_a_disk_that_refuses_during_a_run_loses_nothing(
    code: int,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From some block on: those before it are there, and are not computed again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    written, append = [0], RunFolder.append_records

    def refuse(self: RunFolder, found: Any) -> None:
        if written[0] == 3:
            raise OSError(code, os.strerror(code), str(self.path / "records.jsonl"))
        written[0] += 1
        append(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_records", refuse)
        with pytest.raises(SystemExit) as stop:
            run(evaluate.main, ["--config=config.yaml"])
    assert stop.value.code == 2
    assert os.strerror(code) in capsys.readouterr().err.splitlines()[-1]
    kept = whole_lines(tmp_path / "runs" / "one")
    assert len(kept) == 6  # three blocks of two
    evaluate.main(["--config=config.yaml"])
    assert whole_lines(tmp_path / "runs" / "one")[:6] == kept
    assert not twice(tmp_path / "runs" / "one")
    found = [(one.defense, one.attack, one.sample) for one in records(tmp_path)]
    assert found == [(one.defense, one.attack, one.sample) for one in records(alone)]


def test_other_settings_may_not_go_on(alone: Path, tmp_path: Path) -> None:
    """Other devices may: test_many_processes.py."""
    shutil.copytree(alone / "runs", tmp_path / "runs")
    other = "--model.attack.steps=1"
    code, said = ended(start(tmp_path, other))
    assert code == 2 and "model.attack.init_args.steps: 2, now 1" in said
    code, said = ended(start(tmp_path, other, "--resume=force"))
    assert code == 0 and "one-2" in said
    assert "plain, square: 3/3 images" in said, "as many as the attack is run on"
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
