"""What signals do to a program that Lightning runs."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from hetpure.errors import InputError


def end_with_children(last_words: str = "") -> None:
    """On SIGTERM ends at once, and first the processes that it started (Lightning's own): while
    they begin nobody else ends them, and they would wait for this one."""

    def stop(number: int, frame: object) -> None:
        os.write(2, last_words.encode())
        for child in children():
            with suppress(ProcessLookupError):
                os.kill(child, number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)


def children() -> list[int]:
    """Of this process, where the system tells (`/proc`): a launcher does not know of one that it
    is just starting."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended
            _, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                found.append(int(path.parent.name))
    return found


def leave_slurm_to_us(trainer: L.Trainer) -> None:
    """Under SLURM Lightning would, on SIGUSR1, save `hpc_ckpt_1.ckpt` in `default_root_dir` from
    within the handler, and load it into what is started there next. We stop in our own way."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def check_nothing_is_loaded_unasked(trainer: L.Trainer) -> None:
    """InputError where Lightning, which is given no checkpoint, would load one all the same."""
    found = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if SLURMEnvironment.detect() and found:
        raise InputError(
            f"{found[0]}: under SLURM Lightning loads this file into what is started there: move it"
            " away, or give another --trainer.default_root_dir (in a training, or --ckpt_path)"
        )
