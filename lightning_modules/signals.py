"""A training that is told to stop: it ends its update and saves it."""

import shlex
import signal
import sys
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback

from hetpure.errors import InputError
from hetpure.program import say
from lightning_modules.processes import everyones, run_folder


class SaveWhenStopped(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C to any process of a training: all end the update they are in,
    save `checkpoints/stopped.ckpt`, and exit with 128 + the number of the signal that came first
    (of those that came at once the larger). A second Ctrl-C ends at once.

    Lightning's own handlers would end a training within an update of several batches, call the
    other processes from within the handler, and take SIGUSR1 under SLURM alone.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._updates = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGUSR1, self._asked)  # Lightning takes no signal that is taken

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._asked)  # in place of Lightning's, which it restores

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._updates = trainer.global_step
        signal.signal(signal.SIGTERM, self._asked)  # no matter whether there was a sanity check
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a script's background
            signal.signal(signal.SIGINT, self._asked)

    def _asked(self, number: int, frame: object) -> None:
        first, self._signal = not self._signal, self._signal or number
        if number == signal.SIGINT:
            if not first:
                raise KeyboardInterrupt
            say("\nstopping after this update; once more to stop at once\n")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if trainer.global_step == self._updates:  # gradients that add up are in no checkpoint
            return
        self._updates = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
            return
        self._signal = max(everyones(self._signal))  # this process may have got none
        path = run_folder(trainer) / "checkpoints" / "stopped.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            where = shlex.quote(str(path))
            say(f"stopped by a signal; go on with --ckpt_path={where}\n", stream=1)
        sys.exit(128 + self._signal)


def check_nothing_is_loaded_unasked(trainer: L.Trainer) -> None:
    """InputError where Lightning, which is given no checkpoint, would load one all the same."""
    files = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if SLURMEnvironment.detect() and files:
        raise InputError(
            f"{files[0]}: under SLURM Lightning loads this file into what is started there: move it"
            " away, or give another --trainer.default_root_dir (in a training, or --ckpt_path)"
        )
