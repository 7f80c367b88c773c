"""Evaluations as processes: killed, stopped, several at once, on disks that refuse."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hetpure.evaluation.store import Store
from tests.lightning_modules.conftest import Finished
from tests.lightning_modules.runs import (
    ROOT,
    Program,
    blocks,
    main,
    records,
    refused,
    results,
    two_programs,
    wait_for,
)

BLOCK = "blocks/00001-masked-pgd_linf-9d2e9894.safetensors"


def same(place: Path, finished: Finished) -> bool:
    """The undisturbed run's records, bit for bit, and its results."""
    return records(place) == records(finished.place) and results(place) == results(finished.place)


def launched(place: Path, *launcher: str, devices: int) -> tuple[int, str]:
    """A program of its own, started as a user does, with the processes that it starts itself."""
    options = ["--config=config.yaml", f"--trainer.devices={devices}", "--trainer.strategy=ddp"]
    ended = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "evaluate.py"), *options],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_a_killed_run_goes_on(place: Path, finished: Finished) -> None:
    """Killed in the first gradient check and in the middle: what was finished is not touched
    again, and the end is as if nothing had been."""
    program, folder = Program(place), place / "runs/one"
    wait_for((folder / "config.yaml").exists)
    program.kill()
    assert not blocks(place)
    (folder / "blocks").mkdir()
    (folder / "blocks/.00000-plain-clean.safetensors.7.part").write_bytes(b"half")
    program = Program(place)
    wait_for(lambda: len(blocks(place)) > 15)
    program.kill()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("blocks/0*")}
    assert 15 < len(before) < len(blocks(finished.place))
    code, printed = Program(place).ended()
    assert code == 0, printed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert same(place, finished)
    assert not list(folder.rglob("*.part")), "what a kill left half written is swept away"


def computes(program: Program, place: Path, count: int) -> bool:
    """Whether there are more finished blocks, or it has ended."""
    return len(blocks(place)) > count or not program.process.is_alive()


@pytest.mark.slow
def test_twenty_kills_lose_nothing(place: Path, finished: Finished) -> None:
    """At random moments, half of them right from the start on, half once it computes."""
    chance = random.Random(0)
    for number in range(20):
        program, before = Program(place), blocks(place)
        if number % 2:
            wait_for(partial(computes, program, place, len(before)))
        time.sleep(chance.uniform(0, 0.2 if number % 2 else 1.5))
        assert program.process.is_alive() or len(blocks(place)) == len(blocks(finished.place))
        program.kill()
        after = blocks(place)
        assert before.items() <= after.items(), "a finished block was lost or written again"
    assert Program(place).ended()[0] == 0
    assert same(place, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_just_ends(number: int, place: Path) -> None:
    """Ctrl-C says how to go on; a scheduler's SIGTERM ends it on the spot."""
    program = Program(place)
    wait_for(lambda: len(blocks(place)) > 1)
    program.signal(number)
    code, printed = program.ended(30)
    assert re.search(r"% of the run; \w+, clean: 2/4 images, ", printed), "a log is no terminal"
    assert "Traceback" not in printed
    if number == signal.SIGTERM:
        assert code == -signal.SIGTERM
    else:
        assert code == 130 and "stopped; go on with --model.run=one" in printed


def test_a_second_run_in_the_folder_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system takes the lock from a process that ended: killed runs go on above."""
    with Store(copied).locked():
        assert "another evaluation is writing there" in refused(capsys, "--config=config.yaml")
    main()


def test_two_processes_give_the_records_of_one(place: Path, finished: Finished) -> None:
    """From the config that the one process wrote."""
    (place / "config.yaml").write_text((finished.folder / "config.yaml").read_text())
    both = [program.ended() for program in two_programs(place)]
    assert [code for code, _ in both] == [0, 0], both
    assert same(place, finished)
    assert blocks(place).keys() == blocks(finished.place).keys()
    assert "DW-box" in both[0][1] and "DW-box" not in both[1][1], "the first one reports"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_launchers_processes_give_the_records_of_one(
    launcher: str, place: Path, finished: Finished
) -> None:
    """Three that Lightning starts, and torchrun's two."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    if launcher == "torchrun":
        code, printed = launched(place, *torchrun, devices=2)
    else:
        code, printed = launched(place, devices=3)
    assert code == 0, printed
    assert same(place, finished)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_dies_and_nobody_ends_the_other(
    victim: int, place: Path, finished: Finished
) -> None:
    """Without the first one the other stops. Without another one the first does all of its tasks,
    once it has heard nothing of it for the time that is set; the same command ends either."""
    both = two_programs(place, "--model.silence=5")
    wait_for(lambda: len(blocks(place)) > 5)
    both[victim].kill()
    code, printed = both[1 - victim].ended()
    assert "Traceback" not in printed
    if victim == 0:
        assert code == 2 and "start the same command again" in printed.splitlines()[-1]
    else:
        assert code == 0 and same(place, finished), printed
    assert Program(place).ended()[0] == 0
    assert same(place, finished)


def test_what_one_process_refuses_ends_both(place: Path) -> None:
    """Other settings than the first one's: a line of each, with the reason."""
    both = [program.ended() for program in two_programs(place, second=("--model.seed=5",))]
    assert [code for code, _ in both] == [2, 2], both
    assert "process 1 has another config.seed: 0, now 5" in both[1][1].splitlines()[-1]
    assert "stopped, for process 1 failed: process 1 has another" in both[0][1].splitlines()[-1]


@pytest.mark.slow
def test_a_folder_that_not_all_processes_see_is_refused(place: Path) -> None:
    """As on two machines that share no disk; half a minute is waited for a slow one."""
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("config.yaml", elsewhere)
    both = [program.ended() for program in two_programs(place, elsewhere=elsewhere)]
    assert [code for code, _ in both] == [2, 2], both
    assert "process 1 sees nothing of the first one's" in both[1][1].splitlines()[-1]


def test_a_full_disk_is_one_line_and_loses_nothing(place: Path, finished: Finished) -> None:
    """From the first finished block on the system lets no file grow beyond some bytes."""
    program = Program(place)
    wait_for(lambda: blocks(place))
    assert program.process.pid is not None
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (100, 100))
    code, printed = program.ended()
    assert code == 2 and "Traceback" not in printed
    assert "File too large" in printed.splitlines()[-1]
    assert "finished records and checkpoints are kept" in printed.splitlines()[-1]
    before = blocks(place)
    assert before and not list((place / "runs").rglob("*.part"))
    main()
    assert before.items() <= blocks(place).items() and same(place, finished)


def test_a_disk_that_cannot_be_written_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the system keeps its own files nobody can make a folder."""
    line = refused(capsys, "--config=config.yaml", "--model.folder=/sys/runs")
    assert "/sys/runs" in line and "mend it and start again" in line


def damaged(folder: Path, kind: str) -> Path:
    """The file of a run that is damaged in this way."""
    path = folder / {"truncated": BLOCK, "foreign": BLOCK, "check": "gradient_checks"}.get(
        kind, "run.json"
    )
    if kind == "check":
        path = next(path.glob("masked-*"))
    if kind == "foreign":
        save_file({"images": torch.zeros(2, 1, 8, 8)}, path)
    elif kind == "version 99":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    elif kind == "version 3":  # which has records and no run.json
        path.unlink()
        path = folder / "records.jsonl"
    else:
        path.write_bytes(path.read_bytes()[:100])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", f"{BLOCK} cannot be read"),
        ("foreign", f"{BLOCK} is no file of this block: delete it, and it is computed anew"),
        ("check", "masked-a6f9a427.json is damaged"),
        ("run", "run.json is damaged"),
        ("version 99", "holds a run of schema 99, this version writes 4"),
        ("version 3", "holds a run of an earlier version, which can be reported and compared"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(
    kind: str, message: str, copied: Path, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else is touched; without a damaged block or check the same command goes on."""
    path = damaged(copied, kind)
    content = path.read_bytes()
    line = refused(capsys, "--config=config.yaml")
    assert message in line
    assert path.read_bytes() == content
    if kind in ("truncated", "foreign", "check"):
        path.unlink()
        main()
        assert same(copied.parent.parent, finished)
