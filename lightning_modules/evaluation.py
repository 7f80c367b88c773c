"""Evaluation of several defences side by side under attacks, as a Lightning test loop."""

import shlex
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import default_pg_timeout
from torch.utils.data import DataLoader

from hetpure.acceleration import Acceleration
from hetpure.attacks import PGD, Attack
from hetpure.attacks.gradient import GradientAttack
from hetpure.errors import InputError
from hetpure.evaluation.audit import Audit, Check, audit_cells, base_cell, gradient_check
from hetpure.evaluation.cost import latency
from hetpure.evaluation.protocol import (
    Block,
    Protocol,
)
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import peak_memory, provenance
from hetpure.gradient_check import float64_device
from hetpure.gradients import Execution, GradientError
from hetpure.memory import budget_bytes
from hetpure.numbers import Bytes
from hetpure.report.figure import draw
from hetpure.report.gradient_checks import failure
from hetpure.report.outcomes import outcome_panels
from hetpure.report.plan import RowPlan
from hetpure.report.report import FIGURE, report
from hetpure.saved_images import saved_images
from hetpure.weights import folder_hash, load_classifier, load_denoiser, resolve
from lightning_modules.attacks import AttackConfig, cells, check_further
from lightning_modules.batches import block_of, first_block
from lightning_modules.blocks import Blocks
from lightning_modules.compatibility import (
    ImageData,
    check_all_answers,
    check_data,
    check_defense,
)
from lightning_modules.defenses import DefenseConfig, Sweep
from lightning_modules.facts import BOUND, COSINE_BOUND, facts
from lightning_modules.progress import AttackProgress, block_work
from lightning_modules.rows import Row, build_rows
from lightning_modules.sessions import check_session, is_seen
from lightning_modules.tasks import Claimed, Queue, Task, check_in_order, in_order


class RobustnessEvaluation(L.LightningModule):
    """Attacks each defence with its full gradient, reports on fresh noise, writes a run folder.

    Args:
        classifier: packaged name or folder of the classifier that all defences share.
        denoisers: names of diffusion weights, each a packaged name or a diffusers folder.
        defenses: rows of the table by name.
        sweep: rows to add, each the base with one setting changed.
        baseline: row that every other one is compared with, paired by sample; by default the
            sweep's base.
        attack: the main attack, against every row: the audit varies it, and its ball is the one
            that `robust` is about.
        attacks: further attacks by name.
        protocol: how draws are counted.
        audit: sanity checks of the attack on the first images; null leaves them out, which the
            results say.
        gradient_bound: largest relative error of the gradient against finite differences on
            the run's own configuration, where clamps and ReLUs have kinks.
        memory_budget: bytes that gradients may take, as 8GB; by default six tenths of the free
            memory.
        execution: by row, how it is computed: policy, taped_steps and micro_batch. What is left
            open is chosen by memory and written here in the run's config.
        acceleration: precision, memory format and compilation of the diffusion network's call.
        cosine_bound: smallest mean cosine of the attack's gradient to the exact one, and of an
            accelerated gradient to the plain one.
        seed: of all noise.
        folder: where run folders go.
        run: name of the run's folder there; where it exists the run goes on in it. By default a
            new one, named after the time.
    """

    def __init__(
        self,
        classifier: str,
        denoisers: dict[str, str],
        defenses: dict[str, DefenseConfig],
        sweep: Sweep | None = None,
        baseline: str | None = None,
        attack: Attack = PGD(),  # noqa: B008 (frozen)
        attacks: dict[str, AttackConfig] | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
        audit: Audit | None = Audit(),  # noqa: B008 (frozen)
        gradient_bound: float = BOUND,
        memory_budget: Bytes | None = None,
        execution: dict[str, Execution] | None = None,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 (frozen)
        cosine_bound: float = COSINE_BOUND,
        seed: int = 0,
        folder: str = "runs/evaluate",
        run: str | None = None,
    ) -> None:
        super().__init__()
        if not defenses:
            raise InputError("--model.defenses names no defence")
        if sweep is not None:
            defenses = defenses | sweep.rows(defenses)
            baseline = baseline or sweep.base
        if baseline is not None and baseline not in defenses:
            raise InputError(
                f"--model.baseline {baseline!r} is not among the defences: {', '.join(defenses)}"
            )
        self.baseline = baseline
        self.attack = attack
        self.attacks = dict(attacks or {})
        check_further(self.attacks, defenses, attack)
        self.protocol = protocol
        self.audit = audit
        self.gradient_bound = gradient_bound
        self.memory_budget = memory_budget
        self.acceleration = acceleration
        self.cosine_bound = cosine_bound
        self.seed = seed
        self.shared_classifier = load_classifier(classifier)
        classifiers = {
            config.classifier: load_classifier(config.classifier)
            for config in defenses.values()
            if config.classifier is not None
        }
        used = {config.denoiser for config in defenses.values()}
        loaded = {key: load_denoiser(path) for key, path in denoisers.items() if key in used}
        self.weights = (
            {"classifier": folder_hash(resolve(classifier))}
            | {f"classifier {name}": folder_hash(resolve(name)) for name in classifiers}
            | {f"denoiser {key}": folder_hash(resolve(denoisers[key])) for key in loaded}
        )
        self.rows = build_rows(defenses, self.shared_classifier, classifiers, loaded, acceleration)
        if unknown := set(execution or {}) - set(self.rows):
            raise InputError(f"--model.execution names no row of the table: {', '.join(unknown)}")
        self.execution = dict(execution or {})
        self.kept: set[str] = set()  # rows whose execution was chosen, by another start or process
        self.networks = nn.ModuleList(  # moves them to the device
            defense for row in self.rows.values() for defense in row.defenses
        )
        started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self.folder = RunFolder(Path(folder) / (run or started))
        self._held = ExitStack()  # the lock of a process that is not the first

    def prepare(self, data: Any, loader: DataLoader[Any], sharing: int = 1) -> None:
        """Checks that networks and data belong together, on the device where this module is. So
        many processes share the memory of the machine."""
        check_data(data)
        defenses = {name: row.defense for name, row in self.rows.items()}
        for defense in defenses.values():
            check_defense(defense, data)
        check_in_order(loader)
        self.data: ImageData = data
        self.loader = loader
        self.first = first_block(loader, data, self.device)
        check_all_answers(defenses, self.first.images)
        self.host_budget = self.memory_budget or budget_bytes(torch.device("cpu")) // sharing
        self.budget = self.host_budget
        if self.device.type != "cpu":
            self.budget = self.memory_budget or budget_bytes(self.device)

    def resolve(self) -> None:
        """Fixes how rows are computed, for the loader's blocks and the memory that there is, where
        it is not fixed yet; and what is run against them."""
        for name, row in self.rows.items():
            budget = sys.maxsize if name in self.kept else self.budget
            row.resolve(self.execution.get(name), self.first.images, self.attack, budget)
            self.execution[name] = row.attacked.execution
            row.cells = cells(name, row.defense, self.attack, self.attacks, self.protocol)
            if self.audit is not None:
                base = base_cell(row.cells)
                saved = partial(self._saved, name, base.name)
                shape = self.first.images.shape[1:]
                row.cells += audit_cells(base, row.defense, self.audit, shape, saved)

    def _saved(self, row: str, attack: str) -> tuple[Tensor, Tensor]:
        return saved_images(self.folder.path, row, attack)

    def gradient_checks(self, row: Row) -> dict[str, dict[str, Any]]:
        """Of one row, on the first block, by the names that results give them."""
        return row.check_gradient(
            self.first.images,
            self.first.samples,
            self.attack,
            self.float64_budget,
            seed=self.seed,
            bound=self.gradient_bound,
            cosine_bound=self.cosine_bound,
        )

    @property
    def float64_budget(self) -> int:
        """Bytes that gradient checks may take where float64 is computed."""
        own = float64_device(self.device) == self.device
        return self.budget if own else self.host_budget

    def _needs_gradients(self, row: Row) -> bool:
        """Whether the main attack takes the row's own gradient: one that hides it can still be
        attacked otherwise, and the audit then says so."""
        own = self.attack.execution(row.attacked) is None
        return isinstance(self.attack, GradientAttack) and own

    def plan(self) -> dict[str, RowPlan]:
        """By row, what the whole evaluation costs."""
        images = len(self.loader.dataset)  # type: ignore[arg-type]
        return {
            name: row.plan(
                self.first.images, self.protocol, images, self.attack, self.float64_budget
            )
            for name, row in self.rows.items()
        }

    def tasks_claimed(self) -> Claimed:
        """What this process does, for Lightning's loop."""
        count = len(self.rows) * (1 + len(self.loader))
        return Claimed(count, lambda: (self.queue, self.tasks), self.loader)

    def setup(self, stage: str) -> None:
        """All processes take the folder, the executions and the number of threads of the first one,
        or, where the run goes on, that it began with, and so compute alike. What one of them
        refuses, all do: none is left waiting for it."""
        strategy, zero = self.trainer.strategy, self.trainer.is_global_zero
        own: dict[str, Any] = {}
        before: list[dict[str, Any]] = []
        threads = torch.get_num_threads()
        refused: Exception | None = None
        try:
            before = self.folder.read_sessions() if zero else []
            threads = before[0]["threads"] if before else threads
            own = provenance(Path(__file__).parent, self.device) | {
                "weights": self.weights,
                "data": self.data.files_sha256(),
                "start": uuid4().hex,
            }
        except Exception as error:  # of whatever kind: the others wait for this process
            refused = error
        if threads != torch.get_num_threads():
            print(
                f"the run goes on with the {threads} threads a process that it began with"
                f" ({torch.get_num_threads()} would be now): another number gives other roundings"
            )
        torch.set_num_threads(strategy.broadcast(threads))
        own["threads"] = torch.get_num_threads()
        chosen = strategy.broadcast((self.folder.path, self.execution, own))
        path, self.execution, first = chosen
        self.kept = set(self.execution)  # the first process's choice is everybody's
        self.folder = RunFolder(path, self.trainer.global_rank)
        try:
            if refused is None:
                check_session([first], own, f"process {self.trainer.global_rank} has")
                if zero:
                    self._begin(before, own)
                else:
                    self.resolve()
        except Exception as error:
            refused = error
        if not strategy.reduce_boolean_decision(refused is None, all=True):
            raise refused or InputError("another process was refused: it says why")
        seen = is_seen(self.folder, first)
        if not strategy.reduce_boolean_decision(seen, all=True):
            raise InputError(
                "another process does not see the run's folder"
                if seen
                else f"process {self.trainer.global_rank} sees nothing of the first one's in"
                f" {path.absolute()}: it has to lie where all processes read and write"
            )

    def _begin(self, before: list[dict[str, Any]], session: dict[str, Any]) -> None:
        """Makes the folder ready, before anything is computed: a commit made during a run is not
        the code that ran."""
        check_session(before, session, "the run began with")
        self.folder.recover()
        self.folder.append_session(session)
        self.folder.write_facts(facts(self))

    def on_test_start(self) -> None:
        if torch.is_inference_mode_enabled():
            raise InputError(
                "the trainer runs in inference mode: set --trainer.inference_mode=false"
            )
        trainer = self.trainer
        self.tasks = in_order(list(self.rows), len(self.loader), self._cost, trainer.world_size)
        timeout = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
        # First of all: by the queue a process that fails tells the others.
        self.queue = Queue(
            len(self.tasks), trainer.global_rank, trainer.world_size, timeout.total_seconds()
        )
        if not trainer.is_global_zero:
            self._held.enter_context(self.folder.locked())
        self.checked = self.folder.read_gradient_checks()
        images = len(self.loader.dataset)  # type: ignore[arg-type]
        self.progress = AttackProgress(list(self.rows.values()), self.protocol, images, self.queue)
        self.blocks = Blocks(self.folder, self.protocol, self.seed, self.progress)
        self.progress.start()

    def _images_before(self, block: int) -> int:
        return block * (self.loader.batch_size or 1)

    def _cost(self, task: Task) -> float:
        block = task.block or 0
        first, after = self._images_before(block), self._images_before(block + 1)
        return block_work(self.rows[task.row], self.protocol, first, after - first)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._work(self.tasks[batch["task"]], block_of(batch, self.data, self.device))

    @torch.enable_grad()
    def _work(self, task: Task, block: Block) -> None:
        row = self.rows[task.row]
        if task.block is None:
            self._check_policies(row)
        else:
            self.blocks.evaluate(row, block, task.block, self._images_before(task.block))

    def _check_policies(self, row: Row) -> None:
        """The row's gradient checks; GradientError or InputError where the attack's gradient is none,
        or not the defence's."""
        if row.name in self.checked:
            return
        self.progress.describe(f"gradient check: {row.name}")
        start = time.perf_counter()
        check = gradient_check(row.attacked, self.first, self.seed, self.attack)
        if check.verdict == "FAIL" and self._needs_gradients(row):
            raise GradientError(f"{row.name}: {check.said}")
        try:
            gradient_checks = self.gradient_checks(row)
        except GradientError as error:
            if self._needs_gradients(row):
                raise
            gradient_checks, check = {}, Check("gradient", "FAIL", str(error))
        for found in gradient_checks.values():
            if not found["passed"]:
                raise InputError(failure(row.name, found))
        seconds = time.perf_counter() - start
        self.folder.append_timing({"row": row.name, "gradient_checks": seconds})
        self.folder.append_gradient_checks(
            {"row": row.name, "gradient_checks": gradient_checks, "gradient": check.as_dict()}
        )

    def on_test_end(self) -> None:
        self.folder.append_timing({"peak_memory_bytes": peak_memory(self.device)})
        self.queue.leave()
        if self.trainer.is_global_zero:
            silent = self.queue.wait(self.progress.look)
            self.progress.look()
            self.progress.describe("results")  # the last thing that is computed
            self.progress.stop()
            if silent:
                raise InputError(
                    f"processes {', '.join(map(str, silent))} said nothing for"
                    f" {self.queue.silence:g} s: what was finished is kept; start the same command"
                    " again"
                )
            self._tell()

    def tell_others(self, why: str) -> None:
        """That this process has failed, wherever it did: they stop at their next question."""
        if hasattr(self, "queue"):
            self.queue.fail(why)

    @property
    def how_to_go_on(self) -> str:
        return f"stopped; go on with --model.run={shlex.quote(self.folder.path.name)}\n"

    def give_terminal_back(self) -> None:
        """Ends the bar, however the run ended."""
        if hasattr(self, "progress"):
            self.progress.stop()

    def _tell(self) -> None:
        """Results, report and figure of the finished run."""
        once = self.first.images[:1]
        measured = {name: latency(row.defense, once) for name, row in self.rows.items()}
        self.folder.append_timing({"latency": measured})
        draw(
            outcome_panels(
                {name: row.defense for name, row in self.rows.items()},
                self.first,
                {
                    name: self._saved(name, row.cells[0].name)[0].to(self.device)
                    for name, row in self.rows.items()
                },
                self.data.class_names,
                self.seed,
            ),
            self.folder.path / FIGURE,
        )
        report(self.folder)
