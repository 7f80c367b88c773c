"""Evaluations by several processes, and killed ones."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import evaluate
from hetpure.evaluation.records import RunFolder
from tests.lightning_modules.runs import (
    CONFIG,
    alone,
    ended,
    none_left,
    records,
    results,
    size,
    start,
    start_two,
    twice,
    wait_for,
    whole_lines,
)

__all__ = ["alone", "none_left"]  # fixtures


# Two processes are torchrun's, below.
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_many_processes_give_the_records_of_one(devices: int, alone: Path, tmp_path: Path) -> None:
    code, said = ended(start(tmp_path, f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert code == 0, said
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)
    folder = tmp_path / "runs" / "one"
    shares = [len(path.read_text().splitlines()) for path in folder.glob("records*.jsonl")]
    assert len(shares) > 1 and sum(shares) == len(records(alone)), "every sample once, by several"
    assert (folder / "report.md").is_file()


def test_torchruns_processes_give_the_records_of_one(alone: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    devices = ("--trainer.devices=2", "--trainer.strategy=ddp")
    code, said = ended(start(tmp_path, *devices, command=torchrun))
    assert code == 0, said
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)


def test_one_process_says_the_plan(tmp_path: Path) -> None:
    """The others chose nothing that they could tell."""
    plans = [ended(process) for process in start_two(tmp_path, "--plan")]
    assert [code for code, _ in plans] == [0, 0], plans
    assert ["the whole evaluation" in said for _, said in plans] == [True, False]


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
    wait_for(tmp_path / "runs" / "one" / "iterations.jsonl")  # the clean images are done
    one.send_signal(signal.SIGTERM)
    code, said = ended(one, 30)
    assert code == 128 + signal.SIGTERM
    assert "run: runs/one" in said and "stopped; go on with --model.run=one" in said
    assert "% of the run; plain, clean: 2/8 images, " in said, "a log is no terminal"
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
    """A gradient check that does not pass, in whichever process."""
    found = [ended(p, 120) for p in start_two(tmp_path, "--model.gradient_bound=1e-15")]
    assert [code for code, _ in found] == [2, 2]
    assert any("gradient_check" in said and "1e-15" in said for _, said in found)
    assert all("Traceback" not in said for _, said in found)


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
        kept = size(place)
        until = time.monotonic() + 60
        while kills % 2 and process.is_alive() and size(place) == kept:
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
        now = whole_lines(place)
        assert now[: len(written[:-1])] == written[:-1], "what was finished stays where it is"
        written = now
        if alive:
            kills += 1
        else:  # it had finished: another one
            assert process.exitcode == 0
            assert records(tmp_path) == records(alone)
            assert not twice(place)
            written = []
            shutil.rmtree(place)
    process = context.Process(target=_evaluate, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert records(tmp_path) == records(alone)
    assert results(tmp_path) == results(alone)
    assert whole_lines(place)[: len(written[:-1])] == written[:-1]
    assert not twice(place)


def test_a_folder_that_not_all_see_is_refused_at_the_start(alone: Path, tmp_path: Path) -> None:
    """As on two machines that share no disk."""
    for place in ("here", "there"):  # a run that was stopped, copied to both
        shutil.copytree(alone / "runs", tmp_path / place / "runs")
    both = start_two(tmp_path / "here", second=tmp_path / "there")
    found = [ended(process, 90) for process in both]
    assert [code for code, _ in found] == [2, 2]
    assert "process 1 sees nothing of the first one's" in found[1][1].splitlines()[-1]
    assert "another process does not see" in found[0][1].splitlines()[-1]
