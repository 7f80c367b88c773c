"""Signals to programs and to their processes; jobs as SLURM runs them, with a scheduler that is
played by the test."""

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from hetpure.evaluation.records import RunFolder
from tests.lightning_modules.runs import none_left, started

__all__ = ["none_left"]  # a fixture

ROOT = Path(__file__).parent.parent.parent
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "own", "SLURM_PROCID": "0",
       "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "1",
       "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost"}  # fmt: skip
EVALUATION = """
model:
  run: one
  classifier: fashion_mnist_wrn
  denoisers: {}
  defenses: {plain: {}}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {epsilon: 16/255, steps: 10, step_size: 4/255, eot_samples: 1}
  protocol: {report_draws: 1, selection_draws: 1}
  audit: null
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 64, batch_size: 8}
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  enable_checkpointing: false
"""
# What srun does with a job of one task, on a machine without a GPU.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for option in "$@"; do
  case "$option" in
    --trainer.accelerator=gpu) own+=(--trainer.accelerator=cpu) ;;
    --trainer.devices=4) own+=(--trainer.devices=1) ;;
    --trainer.strategy=ddp) ;;
    *) own+=("$option") ;;
  esac
done
echo "$BASHPID" > srun.pid
exec "${own[@]}"
"""


PLAIN = [
    *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=60"),
    *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    *("--trainer.callbacks.every_n_train_steps=1", "--trainer.callbacks.save_last=true"),
]


def start(
    place: Path, script: str, *options: str, job: dict[str, str] | None = JOB, **settings: Any
) -> subprocess.Popen[str]:
    """A script of ours in a folder of the test's, within the job, if any."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *options],
        cwd=place,
        env=os.environ | (job or {}) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **settings,
    )
    started.append(process)
    return process


def wait_for(place: Path, pattern: str, seconds: float = 120) -> Path:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in place.rglob(pattern):
            if path.stat().st_size:
                return path
        time.sleep(0.01)
    raise AssertionError(f"{pattern} was not written in {seconds} s")


def children(process: int) -> list[int]:
    """That are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z":
                found.append(int(path.parent.name))
    return found


TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def test_a_stop_while_the_processes_begin_leaves_none(tmp_path: Path) -> None:
    """They would wait for the first one, with their part of a device's memory."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    first = start(tmp_path, "evaluate.py", "--config=my.yaml", *TWO, job=None)
    until = time.monotonic() + 60
    while not (others := children(first.pid)) and time.monotonic() < until:
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM, said
    until = time.monotonic() + 10
    while (left := [one for one in others if alive(one)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert others and not left


@pytest.mark.parametrize(
    ("script", "options", "last_words"),
    [
        ("evaluate.py", ["--config=my.yaml"], "stopped; go on with --model.run=one"),
        ("train.py", PLAIN, ""),
    ],
)
def test_a_stop_is_heard_while_others_are_waited_for(
    script: str, options: list[str], last_words: str, tmp_path: Path
) -> None:
    """Within torch, where Python runs no handler; the other process never comes."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    job = {"LOCAL_RANK": "0", "PYTHONUNBUFFERED": "1"}  # somebody else is to start the other one
    first = start(tmp_path, script, *options, *TWO, job=job)
    assert first.stdout is not None
    said = [first.stdout.readline()]
    while "Initializing distributed" not in said[-1]:
        said.append(first.stdout.readline())
        assert said[-1], said
    time.sleep(1)
    assert first.poll() is None, "it waits"
    first.send_signal(signal.SIGTERM)
    rest, _ = first.communicate(timeout=10)
    assert first.returncode == 128 + signal.SIGTERM, rest
    assert last_words in rest


def alive(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_whole_group_ends_the_update_and_saves_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As a terminal, a service manager or a scheduler stops a job, the loaders' processes too:
    without them the update would end in an error."""
    training = start(tmp_path, "train.py", *PLAIN, "--data.num_workers=2", job=None)
    wait_for(tmp_path, "*.ckpt")
    os.killpg(training.pid, number)
    said, _ = training.communicate(timeout=60)
    assert training.returncode == 128 + number, said
    assert "Traceback" not in said
    (stopped,) = tmp_path.rglob("stopped.ckpt")
    assert 0 < torch.load(stopped, weights_only=True)["global_step"] < 60


def test_a_signal_of_slurms_makes_no_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    """Lightning's own handler would save the networks, from within an attack, and load them into
    the next evaluation in this folder."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    one = start(tmp_path, "evaluate.py", "--config=my.yaml")
    wait_for(tmp_path, "records.jsonl")
    one.send_signal(signal.SIGUSR1)
    said, _ = one.communicate(timeout=60)
    assert one.returncode == -signal.SIGUSR1, said
    finished = RunFolder(tmp_path / "runs" / "one").read_records()
    assert finished and not list(tmp_path.rglob("*.ckpt"))
    again = start(tmp_path, "evaluate.py", "--config=my.yaml")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    records = RunFolder(tmp_path / "runs" / "one").read_records()
    assert len(records) == 3 * 64 and all(record in records for record in finished)


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_checkpoint_that_lightning_would_load_unasked_is_refused(
    script: str, tmp_path: Path
) -> None:
    torch.save({}, tmp_path / "hpc_ckpt_1.ckpt")
    running = start(tmp_path, script, "--trainer.default_root_dir=.")
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 2, said
    last = said.splitlines()[-1]
    assert "hpc_ckpt_1.ckpt: under SLURM Lightning loads this file" in last


def test_the_training_script_goes_back_to_the_queue_and_on(tmp_path: Path) -> None:
    """configs/cluster/train.sbatch: told to stop it saves, asks for the queue, and the same script
    then goes on from there, in the same folder, since a job keeps its number. Another training in
    that folder is refused."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> queue\n'}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f'python() {{ {sys.executable} "$@"; }}\n')
    for name in ("train.py", "evaluate.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    told = JOB | {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def submitted(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(ROOT / "configs" / "cluster" / "train.sbatch"), *PLAIN, *options],
            cwd=tmp_path,
            env=os.environ | told | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    job = submitted()
    wait_for(tmp_path / "runs", "*.ckpt")
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGUSR1, said
    assert (tmp_path / "queue").read_text() == "requeue 77\n"
    (stopped,) = tmp_path.rglob("stopped.ckpt")
    assert 0 < torch.load(stopped, weights_only=True)["global_step"] < 60

    job = submitted()
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert (tmp_path / "queue").read_text() == "requeue 77\n", "it had ended"
    (end,) = tmp_path.rglob("end.ckpt")
    assert end.parent == stopped.parent, "the folder of the job"
    assert torch.load(end, weights_only=True)["global_step"] == 60

    folder = "--trainer.default_root_dir=runs/train/77"
    said, _ = (other := start(tmp_path, "train.py", *PLAIN, folder)).communicate(timeout=60)
    assert other.returncode == 2, said
    assert "holds another training" in said.splitlines()[-1]


def test_the_evaluation_script_is_bash_and_names_our_options() -> None:
    script = ROOT / "configs" / "cluster" / "evaluate.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = [word for word in script.read_text().split() if word.startswith("--trainer.")]
    asked = [option.split("=")[0].replace('"', "") for option in options]
    assert asked == [
        f"--trainer.{name}" for name in ("accelerator", "strategy", "num_nodes", "devices")
    ]
