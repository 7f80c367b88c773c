"""What signals do to a program that Lightning runs."""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock, Thread, local
from typing import NamedTuple

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from hetpure.errors import InputError


class _Listening(NamedTuple):
    reads: socket.socket  # by the thread
    writes: socket.socket  # by the system, the numbers of signals
    before: int  # what the system wrote to


_listening: _Listening | None = None
_ending = False  # whether this process is within ending_with_children
_held = local()  # a thread's mask of signals from before it forks


def say(text: str, stream: int = 2) -> None:
    """Writes to standard error (2) or output (1). Nothing ends because nobody reads it any more, as
    where a signal has ended `tee` too, or because a log's disk is full."""
    if (sys.__stderr__ if stream == 2 else sys.__stdout__) is None:
        return  # closed from the start: by now the number may be another file's
    with suppress(OSError):
        os.write(stream, text.encode())


@contextmanager
def ending_with_children(last_words: str = "") -> Iterator[None]:
    """Here SIGTERM ends the program at once, with exit code 128 + 15, and first the processes that
    it started (Lightning's own): while they begin nobody else ends them, and they would wait for
    this one.

    A thread listens: Python runs no handler while the main thread waits within a library, as for
    other processes to begin, and Lightning's handler asks all processes of a group before ours."""
    global _ending
    at_it = RLock()

    def end(number: int = signal.SIGTERM, frame: object = None) -> None:
        with at_it:  # of the handler and the thread the second one waits for the end
            try:
                for child in children():
                    with suppress(OSError):
                        os.kill(child, number)
                with suppress(OSError, ValueError):
                    if select.select([], [2], [], 1)[1]:  # else its reader stalls
                        say(last_words)
            finally:
                os._exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    _listen(end)
    _ending = True
    try:
        yield
    finally:
        _ending = False
        stop_listening()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _listen(end: Callable[[], None]) -> None:
    global _listening
    reads, writes = socket.socketpair()
    writes.setblocking(False)

    def listen() -> None:
        with suppress(OSError):  # closed
            while numbers := reads.recv(64):
                if signal.SIGTERM in numbers:
                    end()

    before = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    _listening = _Listening(reads, writes, before)
    Thread(target=listen, name="SIGTERM", daemon=True).start()


def stop_listening() -> None:
    """From here SIGTERM is heeded by its handler alone, which may be another one now."""
    global _listening
    if _listening is not None:
        signal.set_wakeup_fd(_listening.before)
        with suppress(OSError):
            _listening.reads.shutdown(socket.SHUT_RDWR)  # its thread ends
        _listening.reads.close()
        _listening.writes.close()
        _listening = None


def _before_a_fork() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_a_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _in_a_fork() -> None:
    """A data loader's process, or one of a user's pool, would write its signals to the program's
    thread: what ends it would end the program. It ends by itself alone, from its first moment."""
    global _listening, _ending
    if _listening is not None:
        signal.set_wakeup_fd(-1)
        _listening.reads.close()
        _listening.writes.close()
        _listening = None
    if _ending:
        _ending = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_a_fork()


os.register_at_fork(before=_before_a_fork, after_in_parent=_after_a_fork, after_in_child=_in_a_fork)


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
