"""Evaluation of several defences side by side under attacks, as a Lightning test loop."""

import json
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.dataset import check_images
from hetpure.acceleration import Acceleration
from hetpure.attacks import PGD, Attack
from hetpure.attacks.gradient import GradientAttack
from hetpure.errors import InputError
from hetpure.evaluation.audit import Audit, Check, audit_cells, base_cell, gradient_check
from hetpure.evaluation.protocol import (
    CLEAN,
    Block,
    Cell,
    Outcome,
    Protocol,
    evaluate_attack,
    evaluate_clean,
)
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import provenance
from hetpure.gradients import Execution, GradientError
from hetpure.memory import budget_bytes
from hetpure.numbers import Bytes
from hetpure.report.certificate import failure
from hetpure.report.figure import draw
from hetpure.report.outcomes import outcome_panels
from hetpure.report.plan import RowPlan
from hetpure.report.report import write_report
from hetpure.report.table import terminal
from hetpure.saved_images import save_images, saved_images
from hetpure.weights import folder_hash, load_classifier, load_denoiser, resolve
from lightning_modules.attacks import AttackConfig, cells, check_further
from lightning_modules.compatibility import ImageData, check_classifier, check_denoiser
from lightning_modules.defenses import DefenseConfig, Sweep
from lightning_modules.progress import AttackProgress
from lightning_modules.rows import Row, build_rows
from lightning_modules.run_results import run_results
from lightning_modules.sessions import check_session

BOUND, COSINE_BOUND = 1e-5, 0.99
CERTIFICATES = "certificates.json"


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
        certificate_bound: largest relative error of the gradient against finite differences on
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
        certificate_bound: float = BOUND,
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
        self.certificate_bound = certificate_bound
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
        self.networks = nn.ModuleList(  # moves them to the device
            defense for row in self.rows.values() for defense in row.defenses
        )
        started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self.folder = RunFolder(Path(folder) / (run or started))
        self.certificates: dict[str, dict[str, Any]] = {}
        self.gradients: dict[str, dict[str, Any]] = {}

    def prepare(self, data: Any, batch: dict[str, Tensor]) -> None:
        """Checks that networks and data belong together, and fixes what the executions leave open,
        for blocks like `batch` on the device where this module is."""
        for row in self.rows.values():
            check_classifier(row.defense.classifier, data)
            if row.defense.denoiser is not None:
                check_denoiser(row.defense.denoiser, data)
        check_images(batch["image"], where="the data", samples=batch["sample"])
        self.budget = self.memory_budget or budget_bytes(self.device)
        for name, row in self.rows.items():
            row.resolve(self.execution.get(name), batch["image"], self.attack, self.budget)
            self.execution[name] = row.attacked.execution
            row.cells = cells(name, row.defense, self.attack, self.attacks, self.protocol)
            if self.audit is not None:
                base = base_cell(row.cells)
                saved = partial(saved_images, self.folder.path, name, base.name)
                shape = batch["image"].shape[1:]
                row.cells += audit_cells(base, row.defense, self.audit, shape, saved)

    def certify(self, images: Tensor, samples: Tensor) -> Iterator[str]:
        """Computes the certificates of all rows; each row's name is given before its turn."""
        for name, row in self.rows.items():
            yield name
            try:
                self.certificates[name] = row.certify(
                    images,
                    samples,
                    seed=self.seed,
                    bound=self.certificate_bound,
                    budget=self.memory_budget if self.device.type == "cpu" else None,
                    cosine_bound=self.cosine_bound,
                )
            except GradientError as error:
                if self._needs_gradients(row):
                    raise
                self.certificates[name] = {}
                self.gradients[name] = Check("gradient", "FAIL", str(error)).as_dict()

    def _needs_gradients(self, row: Row) -> bool:
        """Whether the main attack takes the row's own gradient: one that hides it can still be
        attacked otherwise, and the audit then says so."""
        own = self.attack.execution(row.attacked) is None
        return isinstance(self.attack, GradientAttack) and own

    def plan(self, images: Tensor, count: int) -> dict[str, RowPlan]:
        """By row, what `count` images cost in blocks like `images` (B, C, H, W)."""
        return {name: row.plan(images, self.protocol, count) for name, row in self.rows.items()}

    def on_test_start(self) -> None:
        if torch.is_inference_mode_enabled():
            raise InputError(
                "the trainer runs in inference mode: set --trainer.inference_mode=false"
            )
        # Lightning's handler waits for the end of an epoch: here, the whole run. Finished blocks
        # are on the disk, so ending at once loses no record.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Before anything is computed: a commit made during a run is not the code that ran.
        session = provenance(Path(__file__).parent, self.device) | {
            "weights": self.weights,
            "data": self._data.files_sha256(),
        }
        loader: DataLoader[Any] = self.trainer.test_dataloaders  # type: ignore[assignment]
        images = len(loader.dataset)  # type: ignore[arg-type]
        self.finished = self.folder.finished()
        check_session(self.folder.read_sessions(), session)
        self.folder.append_session(session)
        self.seen = 0
        self.progress = AttackProgress(list(self.rows.values()), self.protocol, images)
        self.progress.start()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        try:
            self._evaluate(batch, batch_idx)
        except BaseException:
            self.progress.stop()  # gives the terminal back before the error is printed
            raise

    @torch.enable_grad()
    def _evaluate(self, batch: dict[str, Tensor], number: int) -> None:
        check_images(batch["image"], where="the data", samples=batch["sample"])
        block = Block(batch["image"], batch["label"], batch["sample"])
        if number == 0:  # all of them first: a row that cannot run stops no run half-way
            self._certify(block)
            self.first = block
        for row in self.rows.values():
            self._clean(row, block, number)
            for cell in row.cells:
                left = len(block.images) if cell.limit is None else cell.limit - self.seen
                if left > 0:
                    self._attack(row, cell, block.first(left), number)
        self.seen += len(block.images)

    def _clean(self, row: Row, block: Block, number: int) -> None:
        if self._done(row, CLEAN, block):
            return
        monitor = self.progress.begun(row, CLEAN)
        start = time.perf_counter()
        outcome = evaluate_clean(
            row.name, row.defense, block, self.protocol, self.seed, monitor=monitor
        )
        self._keep(row, CLEAN, block, number, outcome, time.perf_counter() - start)

    def _attack(self, row: Row, cell: Cell, block: Block, number: int) -> None:
        if self._done(row, cell.name, block):
            self.progress.skipped(row, cell, len(block.images), self.protocol)
            return
        monitor = self.progress.begun(row, cell.name, cell)
        start = time.perf_counter()
        outcome = evaluate_attack(
            row.name,
            row.defense,
            cell,
            block,
            self.protocol,
            self.seed,
            clean=self._clean_kept(row, block),
            attacked=row.attacked,
            monitor=monitor,
        )
        seconds = time.perf_counter() - start
        what = {"defense": row.name, "attack": cell.name, "block": number}
        self.folder.append_iterations(what | {"iterations": monitor.iterations})
        self._keep(row, cell.name, block, number, outcome, seconds)

    def _clean_kept(self, row: Row, block: Block) -> Tensor:
        """On how many selection draws the row is right on the clean images (B,)."""
        kept = self.finished[row.name, CLEAN]
        return torch.tensor([kept[sample] for sample in block.samples.tolist()]).to(block.labels)

    def _done(self, row: Row, attack: str, block: Block) -> bool:
        """Whether an earlier run finished this block."""
        samples = self.finished.get((row.name, attack), {})
        return samples.keys() >= set(block.samples.tolist())

    def _keep(
        self, row: Row, attack: str, block: Block, number: int, outcome: Outcome, seconds: float
    ) -> None:
        """Writes what a block gave: images and timing first, records last, for they say that the
        block is done."""
        self.progress.finished(row.name, attack, outcome.records)
        save_images(self.folder.path, row.name, attack, number, outcome.adversarial, block.samples)
        self.folder.append_timing(
            {"defense": row.name, "attack": attack, "block": number, "seconds": seconds}
        )
        self.folder.append_records(outcome.records)
        found = self.finished.setdefault((row.name, attack), {})
        found |= {record.sample: record.kept for record in outcome.records}

    def _certify(self, block: Block) -> None:
        path = self.folder.path / CERTIFICATES
        if path.exists():
            known = json.loads(path.read_text())
            self.certificates, self.gradients = known["certificates"], known["gradients"]
            return
        start = time.perf_counter()
        for name, row in self.rows.items():
            check = gradient_check(row.attacked, block, self.seed, self.attack)
            self.gradients[name] = check.as_dict()
            if check.verdict == "FAIL" and self._needs_gradients(row):
                raise GradientError(f"{name}: {check.said}")
        for name in self.certify(block.images, block.samples):
            self.progress.describe(f"gradient certificate: {name}")
        for name, certificates in self.certificates.items():
            for found in certificates.values():
                if not found["passed"]:
                    raise InputError(failure(name, found))
        self.folder.append_timing({"certificates": time.perf_counter() - start})
        known = {"certificates": self.certificates, "gradients": self.gradients}
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps(known, indent=2) + "\n")
        whole.replace(path)

    def weaker_than_full(self) -> list[str]:
        """Every departure from the full evaluation."""
        found = [*self.attack.weaker_than_full(), *self.protocol.weaker_than_full()]
        if not self.attacks:
            found.append("one kind of attack only")
        for name, config in self.attacks.items():
            own = f"{config.attack.name}: "  # the table has the config's name
            found += [f"{name}: {s.removeprefix(own)}" for s in config.attack.weaker_than_full()]
        if self.audit is None:
            found.append("no audit")
        elif not isinstance(self.attack, GradientAttack):
            found.append(f"the audit varies nothing of {self.attack.name}")
        for row in self.rows.values():
            found += row.weaker_than_full(self.certificates[row.name])
        if self.acceleration.active:
            found.append(f"the diffusion network's calls: {self.acceleration.describe()}")
        if self.certificate_bound > BOUND or self.cosine_bound < COSINE_BOUND:
            found.append(
                f"gradients may be {self.certificate_bound:g} from finite differences (full:"
                f" {BOUND:g}) and have cosines of {self.cosine_bound:g} (full: {COSINE_BOUND:g})"
            )
        return list(dict.fromkeys(found))

    def on_test_end(self) -> None:
        self.progress.stop()
        results = run_results(self, self._data)
        self.folder.write_results(results)
        draw(
            outcome_panels(
                {name: row.defense for name, row in self.rows.items()},
                self.first,
                {
                    name: saved_images(self.folder.path, name, row.cells[0].name)[0].to(self.device)
                    for name, row in self.rows.items()
                },
                self._data.class_names,
                self.seed,
            ),
            self.folder.path / "figure.png",
        )
        write_report(results, self.folder.path, "figure.png")
        console = Console(width=None if Console().is_terminal else 140)
        for table in terminal(results):
            console.print(table)
        console.print(f"run folder: {self.folder.path} (report.md, results.json)", soft_wrap=True)

    @property
    def _data(self) -> ImageData:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data
