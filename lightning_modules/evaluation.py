"""Evaluation of several defences side by side under attacks, as a Lightning test loop."""

import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hetpure.errors import InputError
from hetpure.evaluation.description import Evaluation, Networks, Run
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.store import Store
from hetpure.evaluation.worker import evaluate, tasks_of
from lightning_modules.progress import EvaluationProgress
from lightning_modules.queue import SILENCE, Queue
from lightning_modules.sweep import Sweep

Describe = Callable[[Store], Run]
SEEN_WITHIN = 30.0  # seconds that a network's file system may take


class RobustnessEvaluation(L.LightningModule):
    """Attacks each defence with its full gradient and keeps what it finds in a run folder. What is
    evaluated is an `Evaluation`, and a function evaluates it (`hetpure.evaluation`); this module
    gives them a device and shares the work among Lightning's processes.

    Args:
        defenses: rows of the table by name.
        sweep: rows to add, each the base with one setting changed.
        baseline: row that every other one is compared with, paired by sample; by default the
            sweep's base.
        folder: where run folders go.
        run: name of the run's folder there; where it exists the run goes on in it. By default a
            new one, named after the time.
        silence: seconds after which the first process does the tasks of one that says nothing.
    """

    def __init__(
        self,
        defenses: dict[str, DefenseConfig],
        sweep: Sweep | None = None,
        baseline: str | None = None,
        folder: str = "runs/evaluate",
        run: str | None = None,
        silence: float = SILENCE,
        **settings: Any,
    ) -> None:
        super().__init__()
        if sweep is not None:
            defenses = defenses | sweep.rows(defenses)
            baseline = baseline or sweep.base
        self.config = Evaluation(defenses=defenses, baseline=baseline, **settings)
        self.loaded = Networks.load(self.config)
        self.networks = self.loaded.modules()  # which move with this module
        self.store = Store(Path(folder) / (run or datetime.now().strftime("%Y%m%d-%H%M%S-%f")))
        self.silence = silence
        self.describe: Describe | None = None
        self.described: Run | None = None

    def setup(self, stage: str) -> None:
        """The first process has begun the run in its store; the others read there what it chose.
        What one of them refuses, all do: none is left waiting for it."""
        strategy = self.trainer.strategy
        self.store = Store(strategy.broadcast(self.store.path))
        refused: Exception | None = None
        try:
            if not self.trainer.is_global_zero:
                self._join()
        except Exception as error:  # of whatever kind: the others wait for this process
            refused = error
        if not strategy.reduce_boolean_decision(refused is None, all=True):
            raise refused or InputError("another process was refused: it says why")

    def _join(self) -> None:
        """Makes this process's description of the run. InputError where it is not the first's."""
        until = time.monotonic() + SEEN_WITHIN
        while (begun := self.store.read_run()) is None and time.monotonic() < until:
            time.sleep(0.2)
        process = f"process {self.trainer.global_rank}"
        if begun is None:
            raise InputError(
                f"{process} sees nothing of the first one's in {self.store.path.absolute()}: the"
                " run's folder has to lie where all processes read and write"
            )
        torch.set_num_threads(begun["provenance"]["threads"])
        assert self.describe is not None
        self.described = self.describe(self.store)
        self.store.check_same(begun["identity"], self.described.identity(), f"{process} has")

    def test_step(self, batch: int, batch_idx: int) -> None:
        """All that this process does: the tasks that it claims."""
        if torch.is_inference_mode_enabled():
            raise InputError(
                "the trainer runs in inference mode: set --trainer.inference_mode=false"
            )
        # Lightning's handlers wait for the end of the loop. What is finished is on the disk.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        run, store, trainer = self.described, self.store, self.trainer
        assert run is not None
        processes = trainer.world_size
        queue = Queue(len(tasks_of(run, processes)), trainer.global_rank, processes)
        progress = EvaluationProgress(run, queue)
        with progress.bar:
            try:
                evaluate(run, store, queue.claim, progress, processes)
                queue.leave()
                if trainer.is_global_zero and not queue.wait(progress.look, self.silence):
                    evaluate(run, store)  # what a dead process had claimed
            except BaseException as error:
                queue.fail(str(error).split("\n")[0])
                raise
