"""What signals do to a program that Lightning runs."""

import os
import signal
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from hetpure.errors import InputError


def end_with_children(trainer: L.Trainer) -> None:
    """On SIGTERM ends at once, and first the processes that Lightning started from this one: while
    they begin nothing else does, and they would wait for this one."""

    def stop(number: int, frame: object) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)


def leave_slurm_to_us(trainer: L.Trainer) -> None:
    """Under SLURM Lightning would, on SIGUSR1, save `hpc_ckpt_1.ckpt` in `default_root_dir` from
    within the handler, and load it into whatever is started there next. We stop in our own way.

    InputError where such a file lies there, which Lightning loads unasked.
    """
    if not SLURMEnvironment.detect():
        return
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    found = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if found:
        raise InputError(
            f"{found[0]}: under SLURM Lightning loads this file into whatever is started there:"
            " move it away, or give another --trainer.default_root_dir"
        )
