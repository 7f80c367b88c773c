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


Program = subprocess.Popen[str]
PLAIN = [
    *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=60"),
    *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    *("--trainer.callbacks.every_n_train_steps=1", "--trainer.callbacks.save_last=true"),
]


def launch(place: Path, command: list[str], job: dict[str, str], **settings: Any) -> Program:
    """In a folder of the test's, within the job, if any."""
    process = subprocess.Popen(
        command,
        cwd=place,
        env=os.environ | job | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **({"stdout": subprocess.PIPE} | settings),
    )
    started.append(process)
    return process


def start(place: Path, script: str, *options: str, **settings: Any) -> Program:
    """A script of ours, in no job unless one is given."""
    command = [sys.executable, str(ROOT / script), *options]
    return launch(place, command, **({"job": {}} | settings))


def wait_for(place: Path, pattern: str, text: str = "", seconds: float = 120) -> Path:
    """A file that holds something, and this text where one is named."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in place.rglob(pattern):
            if path.stat().st_size and (not text or text in path.read_text()):
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
    first = start(tmp_path, "evaluate.py", "--config=my.yaml", *TWO)
    until = time.monotonic() + 60
    while not (others := children(first.pid)) and time.monotonic() < until:
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM, said
    assert others and end(others)


@pytest.mark.parametrize(
    ("script", "options", "last_words"),
    [
        ("evaluate.py", ["--config=my.yaml"], ["stopped; go on with --model.run=one"]),
        ("train.py", PLAIN, []),
    ],
)
def test_a_stop_is_heard_while_others_are_waited_for(
    script: str, options: list[str], last_words: list[str], tmp_path: Path
) -> None:
    """Within torch, where Python runs no handler; the other process never comes."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    job = {"LOCAL_RANK": "0"}  # somebody else is to start the other one
    first = start(tmp_path, script, *options, *TWO, job=job, stdout=(tmp_path / "said").open("w"))
    wait_for(tmp_path, "said", "Initializing distributed")
    spent, before = cpu_time(first.pid), 0
    until = time.monotonic() + 60
    while spent - before > 3 and time.monotonic() < until:  # ticks of 10 ms: until it waits
        time.sleep(1)
        before, spent = spent, cpu_time(first.pid)
    first.send_signal(signal.SIGTERM)
    first.wait(10)
    said = (tmp_path / "said").read_text()
    assert first.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-len(last_words) :] == last_words or not last_words


def cpu_time(process: int) -> int:
    """Of its main thread, in ticks."""
    stat = Path(f"/proc/{process}/task/{process}/stat").read_text().rpartition(")")[2].split()
    return int(stat[11]) + int(stat[12])


@pytest.mark.parametrize("log", [True, False], ids=["log", "log's reader gone"])
def test_a_stop_ends_processes_at_work(log: bool, tmp_path: Path) -> None:
    """Also where nobody reads what they say, as in `| tee` when a signal has ended `tee`."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    first = start(tmp_path, "evaluate.py", "--config=my.yaml", *TWO)
    assert first.stdout is not None
    wait_for(tmp_path, "records*.jsonl")
    others = children(first.pid)
    if not log:
        first.stdout.close()
    first.send_signal(signal.SIGTERM)
    first.wait(10)
    assert first.returncode == 128 + signal.SIGTERM
    assert others and end(others)
    if log:
        assert "stopped; go on with --model.run=one\n" in first.stdout.read()


def test_a_log_without_a_reader_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(EVALUATION)
    one = start(tmp_path, "evaluate.py", "--config=my.yaml")
    assert one.stdout is not None
    wait_for(tmp_path, "records.jsonl")
    one.stdout.close()
    one.wait(120)
    assert len(RunFolder(tmp_path / "runs" / "one").read_records()) == 3 * 64
    assert wait_for(tmp_path, "results.json", seconds=1)


FORKS = """
import multiprocessing, os, signal, time
from lightning_modules.signals import ending_with_children, stop_listening

def asleep(_):
    time.sleep(60)

if __name__ == "__main__":
    with ending_with_children("ended"):
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:  # whose end is by SIGTERM
            pool.map(abs, [1, 2])
        for listening in [True] * 20 + [False]:  # a training takes over
            if not listening:
                stop_listening()
                signal.signal(signal.SIGTERM, lambda *_: None)
            one = context.Process(target=asleep, args=(0,))
            one.start()
            one.terminate()
            one.join(10)
            assert one.exitcode == -signal.SIGTERM, one.exitcode
        time.sleep(0.5)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    print("alive")
"""


def test_what_ends_a_forked_process_ends_it_alone(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text(FORKS)
    said, _ = start(tmp_path, str(tmp_path / "forks.py")).communicate(timeout=60)
    assert said == "alive\n"


def alive(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def end(processes: list[int], seconds: float = 10) -> bool:
    """Whether they all do so, soon."""
    until = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, processes))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_whole_group_ends_the_update_and_saves_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As a terminal, a service manager or a scheduler stops a job, the loaders' processes too:
    without them the update would end in an error."""
    training = start(tmp_path, "train.py", *PLAIN, "--data.num_workers=2")
    wait_for(tmp_path, "*.ckpt")
    os.killpg(training.pid, number)
    said, _ = training.communicate(timeout=60)
    assert training.returncode == 128 + number, said
    assert "Traceback" not in said
    assert 0 < stopped_at(tmp_path) < 60


def stopped_at(place: Path) -> int:
    """The updates that were done when it was saved."""
    (stopped,) = place.rglob("stopped.ckpt")
    updates: int = torch.load(stopped, weights_only=True)["global_step"]
    return updates


def test_ctrl_c_saves_a_training_whose_log_has_no_reader(tmp_path: Path) -> None:
    """`python train.py | tee log`, stopped at the terminal: `tee` is too."""
    training = start(tmp_path, "train.py", *PLAIN)
    assert training.stdout is not None
    wait_for(tmp_path, "*.ckpt")
    training.stdout.close()
    training.send_signal(signal.SIGINT)
    training.wait(60)
    assert training.returncode == 128 + signal.SIGINT
    assert 0 < stopped_at(tmp_path) < 60


def test_ctrl_c_of_another_program_leaves_a_training_in_the_background(tmp_path: Path) -> None:
    """A script's shell starts `python train.py &` with SIGINT ignored."""
    (tmp_path / "script").write_text('"$@" & echo $! > pid; wait $!')
    command = ["bash", "script", sys.executable, str(ROOT / "train.py"), *PLAIN]
    script = launch(tmp_path, command, {})
    wait_for(tmp_path, "*.ckpt")
    training = int((tmp_path / "pid").read_text())
    os.kill(training, signal.SIGINT)
    time.sleep(1)
    assert alive(training) and not list(tmp_path.rglob("stopped.ckpt"))
    os.kill(training, signal.SIGTERM)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 128 + signal.SIGTERM, said


def test_a_signal_of_slurms_makes_no_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    """Lightning's own handler would save the networks, from within an attack, and load them into
    the next evaluation in this folder."""
    (tmp_path / "my.yaml").write_text(EVALUATION)
    one = start(tmp_path, "evaluate.py", "--config=my.yaml", job=JOB)
    wait_for(tmp_path, "records.jsonl")
    one.send_signal(signal.SIGUSR1)
    said, _ = one.communicate(timeout=60)
    assert one.returncode == -signal.SIGUSR1, said
    finished = RunFolder(tmp_path / "runs" / "one").read_records()
    assert finished and not list(tmp_path.rglob("*.ckpt"))
    again = start(tmp_path, "evaluate.py", "--config=my.yaml", job=JOB)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    records = RunFolder(tmp_path / "runs" / "one").read_records()
    assert len(records) == 3 * 64 and all(record in records for record in finished)


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_checkpoint_that_lightning_would_load_unasked_is_refused(
    script: str, tmp_path: Path
) -> None:
    torch.save({}, tmp_path / "hpc_ckpt_1.ckpt")
    running = start(tmp_path, script, "--trainer.default_root_dir=.", job=JOB)
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

    def submitted() -> Program:
        script = str(ROOT / "configs" / "cluster" / "train.sbatch")
        return launch(tmp_path, ["bash", script, *PLAIN], told)

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
    said, _ = (other := start(tmp_path, "train.py", *PLAIN, folder, job=JOB)).communicate(
        timeout=60
    )
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
