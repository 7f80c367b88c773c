"""Evaluation of several defences side by side under attacks, as a Lightning test loop."""

import signal
import time
from collections.abc import Callable
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hetpure.errors import InputError
from hetpure.evaluation.description import Evaluation, Networks, Run
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.store import Store
from hetpure.evaluation.worker import Watch, Watches, evaluate
from lightning_modules.evaluation_log import EvaluationLog
from lightning_modules.progress import EvaluationProgress
from lightning_modules.queue import SILENCE, Queue, common_store
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
        if not 0 < silence < inf:
            raise InputError(f"--model.silence must be > 0 seconds, got {silence}")
        self.silence = silence
        self.describe: Describe | None = None
        self.described: Run | None = None

    def test_step(self, batch: int, batch_idx: int) -> None:
        """All that this process does: the tasks that it claims, of the run that the first process
        has begun in its store. Where one fails, the others stop at their next question."""
        if torch.is_inference_mode_enabled():
            raise InputError(
                "the trainer runs in inference mode: set --trainer.inference_mode=false"
            )
        # Lightning's handlers wait for the end of the loop. What is finished is on the disk.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        trainer = self.trainer
        self.store = Store(trainer.strategy.broadcast(self.store.path))
        queue = Queue(common_store(trainer.strategy), trainer.global_rank, trainer.world_size)
        try:
            run = self.described or self._join()
            progress = EvaluationProgress(run, queue)
            with progress.bar, progress.compiling(run):
                watches: list[Watch] = [progress]
                if trainer.is_global_zero and trainer.loggers:
                    watches.append(EvaluationLog(trainer.loggers, run, self.store))
                evaluate(run, self.store, queue.claim, Watches(*watches), trainer.world_size)
                queue.leave()
                if trainer.is_global_zero and not queue.wait(progress.look, self.silence):
                    evaluate(run, self.store)  # what a dead process had claimed
        except BaseException as error:
            queue.fail(str(error).split("\n")[0])
            raise

    def _join(self) -> Run:
        """This process's description of the run. InputError where it is not the first's."""
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
        run = self.describe(self.store)
        self.store.check_same(begun["identity"], run.identity(), f"{process} has")
        return run
