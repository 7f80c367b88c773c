"""Trainings that are told to stop, also by a scheduler that the test plays (SLURM)."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

import train
from hetpure.errors import InputError
from lightning_modules.callbacks import ExportWeights
from lightning_modules.signals import SaveWhenStopped, check_nothing_is_loaded_unasked
from lightning_modules.training import Training
from tests.lightning_modules.trainings import UNET, FewImages, diffusion, same_weights, trainer

ROOT = Path(__file__).parent.parent.parent
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "own", "SLURM_PROCID": "0",
       "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "1",
       "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost"}  # fmt: skip
# What srun does with a job of one task, on a machine without a GPU.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for option in "$@"; do
  case "$option" in
    --trainer.accelerator=gpu) kept+=(--trainer.accelerator=cpu) ;;
    --trainer.devices=4) kept+=(--trainer.devices=1) ;;
    --trainer.strategy=ddp) ;;
    *) kept+=("$option") ;;
  esac
done
echo "$BASHPID" > srun.pid
exec "${kept[@]}"
"""
PLAIN = [
    *("--model.perturbation=null", "--data.batch_size=4"),
    *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    *("--trainer.callbacks.every_n_train_steps=1", "--trainer.callbacks.save_last=true"),
]
LONG = "--trainer.max_steps=100000"  # it is stopped before, on the slowest machine
started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_program_is_left() -> Iterator[None]:
    """Nor a process of one: each leads a group of its own."""
    yield
    while started:
        process = started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(autouse=True)
def _handlers_as_they_were() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in a script's background."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Sends(Callback):
    """Signals to this process, within the second update of two batches."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.numbers = ()


def fit(folder: Path, *numbers: signal.Signals, resume: Path | None = None) -> Training:
    module = diffusion()
    fitting = trainer(
        folder,
        SaveWhenStopped(),
        Sends(*numbers),
        ExportWeights(),
        max_steps=4,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    fitting.fit(module, FewImages(40, 4), ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_ends_the_update_and_the_training_goes_on_bit_for_bit(
    number: signal.Signals, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, number)
    assert stop.value.code == 128 + number
    path = tmp_path / "checkpoints" / "stopped.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2
    assert not (tmp_path / "diffusion").exists()
    assert same_weights(fit(tmp_path / "rest", resume=path), fit(tmp_path / "whole"))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, signal.SIGINT, signal.SIGINT)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_ctrl_c_of_another_program_leaves_a_training_in_the_background(tmp_path: Path) -> None:
    """A script's shell starts `python train.py &` with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fit(tmp_path, signal.SIGINT)
    assert (tmp_path / "diffusion").exists()
    assert not list(tmp_path.rglob("stopped.ckpt"))


def launch(place: Path, *options: str, script: Path = ROOT / "train.py", **environment: str) -> Any:
    """A training as a program of its own, in a folder of the test's."""
    command = [sys.executable] if script.suffix == ".py" else ["bash"]
    process = subprocess.Popen(
        [*command, str(script), *options],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def wait_for(place: Path, pattern: str) -> None:
    until = time.monotonic() + 120
    while not list(place.rglob(pattern)):
        assert time.monotonic() < until, f"{pattern} was not written"
        time.sleep(0.01)


def content(place: Path, name: str) -> dict[str, Any]:
    (path,) = place.rglob(name)
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def test_a_program_that_is_told_to_stop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGTERM to `python train.py`, which ends, and the option that it says goes on."""
    fresh = (f"--model.unet={UNET}", "--model.diffusion=null")
    training = launch(tmp_path, *PLAIN, LONG, *fresh)
    wait_for(tmp_path, "*.ckpt")
    training.send_signal(signal.SIGTERM)
    output, _ = training.communicate(timeout=60)
    assert training.returncode == 128 + signal.SIGTERM, output
    updates = content(tmp_path, "stopped.ckpt")["global_step"]
    (option,) = [word for word in output.split() if word.startswith("--ckpt_path=")]
    monkeypatch.chdir(tmp_path)
    train.main([*PLAIN, *fresh, option, f"--trainer.max_steps={updates + 1}"])
    assert content(tmp_path, "end.ckpt")["global_step"] == updates + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_whole_group_ends_the_update_and_saves_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As a terminal, a service manager or a scheduler stops a job, the loaders' processes too:
    without them the update would end in an error. Nor does it need a reader of its log: of
    `python train.py | tee log` the terminal stops `tee` too."""
    training = launch(tmp_path, *PLAIN, LONG, "--data.num_workers=2")
    wait_for(tmp_path, "*.ckpt")
    training.stdout.close()
    os.killpg(training.pid, number)
    training.wait(60)
    assert training.returncode == 128 + number
    assert content(tmp_path, "stopped.ckpt")["global_step"] > 0


@pytest.mark.slow
def test_all_processes_say_by_which_signal_one_was_stopped(tmp_path: Path) -> None:
    """A scheduler asks the exit code, and not of a process of its choice."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["MASTER_PORT"],
                   "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
                   "TORCHELASTIC_RUN_ID": "one"}  # fmt: skip
    options = [*PLAIN, LONG, "--trainer.devices=2", "--trainer.strategy=ddp"]
    both = [launch(tmp_path, *options, **environment, RANK=r, LOCAL_RANK=r) for r in ("0", "1")]
    wait_for(tmp_path, "*.ckpt")
    both[1].send_signal(signal.SIGUSR1)
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGUSR1] * 2, outputs
    assert content(tmp_path, "stopped.ckpt")["global_step"] > 0


@pytest.mark.slow
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
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    sbatch = ROOT / "configs" / "cluster" / "train.sbatch"

    job = launch(tmp_path, *PLAIN, LONG, script=sbatch, PATH=path, **JOB)
    wait_for(tmp_path / "runs", "*.ckpt")
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGUSR1, output
    assert (tmp_path / "queue").read_text() == "requeue 77\n"
    updates = content(tmp_path, "stopped.ckpt")["global_step"] + 2
    few = f"--trainer.max_steps={updates}"

    job = launch(tmp_path, *PLAIN, few, script=sbatch, PATH=path, **JOB)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert (tmp_path / "queue").read_text() == "requeue 77\n", "it had ended"
    (end,), (stopped,) = tmp_path.rglob("end.ckpt"), tmp_path.rglob("stopped.ckpt")
    assert end.parent == stopped.parent, "the folder of the job"
    assert content(tmp_path, "end.ckpt")["global_step"] == updates

    other = launch(tmp_path, *PLAIN, few, "--trainer.default_root_dir=runs/train/77", **JOB)
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 2, output
    assert "holds another training" in output.splitlines()[-1]


def test_the_evaluation_script_is_bash_and_names_our_options() -> None:
    script = ROOT / "configs" / "cluster" / "evaluate.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = [word for word in script.read_text().split() if word.startswith("--trainer.")]
    assert [option.split("=")[0].replace('"', "") for option in options] == [
        f"--trainer.{name}" for name in ("accelerator", "strategy", "num_nodes", "devices")
    ]


def test_a_checkpoint_that_lightning_would_load_unasked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    asked: Any = SimpleNamespace(default_root_dir=tmp_path)
    check_nothing_is_loaded_unasked(asked)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="hpc_ckpt_1.ckpt: under SLURM Lightning loads this file"):
        check_nothing_is_loaded_unasked(asked)
