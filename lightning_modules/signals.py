"""What signals do to a program that Lightning runs."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from threading import RLock, Thread

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from hetpure.errors import InputError

_heard: list[socket.socket] = []


def end_with_children(last_words: str = "") -> None:
    """On SIGTERM ends at once, with exit code 128 + 15, and first the processes that it started
    (Lightning's own): while they begin nobody else ends them, and they would wait for this one.

    A thread listens: Python runs no handler while the main thread waits within a library, as for
    other processes to begin."""
    end_no_longer()
    at_it = RLock()

    def end(number: int = signal.SIGTERM, frame: object = None) -> None:
        with at_it:  # of the handler and the thread the second one waits for the end
            os.write(2, last_words.encode())
            for child in children():
                with suppress(ProcessLookupError):
                    os.kill(child, number)
            os._exit(128 + number)

    def listen() -> None:
        while numbers := ours.recv(64):
            if signal.SIGTERM in numbers:
                end()

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.signal(signal.SIGTERM, end)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    _heard.append(theirs)  # kept open
    Thread(target=listen, name="SIGTERM", daemon=True).start()


def end_no_longer() -> None:
    """From here SIGTERM is heeded by its handler alone, which may be another one now."""
    while _heard:
        signal.set_wakeup_fd(-1)
        _heard.pop().close()  # its thread ends


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
