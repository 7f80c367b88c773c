"""Evaluation of several defences side by side under one attack, as a Lightning test loop."""

import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import SaveConfigCallback
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.dataset import check_images
from hetpure.acceleration import Acceleration
from hetpure.attacks import PGD, Attack
from hetpure.errors import InputError
from hetpure.evaluation.cost import latency
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import SCHEMA, peak_memory, provenance, summarise
from hetpure.gradients import Execution
from hetpure.memory import budget_bytes
from hetpure.numbers import Bytes
from hetpure.report.certificate import failure
from hetpure.report.figure import Panel, draw
from hetpure.report.outcomes import outcome_panels
from hetpure.report.plan import RowPlan
from hetpure.report.report import write_report
from hetpure.report.table import terminal
from hetpure.weights import folder_hash, load_classifier, load_denoiser, resolve
from lightning_modules.compatibility import ImageData, check_classifier, check_denoiser
from lightning_modules.defenses import DefenseConfig, Sweep
from lightning_modules.progress import AttackProgress
from lightning_modules.rows import build_rows

BOUND, COSINE_BOUND = 1e-5, 0.99


class RobustnessEvaluation(L.LightningModule):
    """Attacks each defence with its full gradient, reports on fresh noise, writes a run folder.

    Args:
        classifier: packaged name or folder of the classifier that all defences share.
        denoisers: names of diffusion weights, each a packaged name or a diffusers folder.
        defenses: rows of the table by name.
        sweep: rows to add, each the base with one setting changed.
        baseline: row that every other one is compared with, paired by sample; by default the
            sweep's base.
        attack: hyper-parameters of the attack; the same for every defence.
        protocol: how draws are counted.
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
    """

    def __init__(
        self,
        classifier: str,
        denoisers: dict[str, str],
        defenses: dict[str, DefenseConfig],
        sweep: Sweep | None = None,
        baseline: str | None = None,
        attack: Attack = PGD(),  # noqa: B008 (frozen)
        protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
        certificate_bound: float = BOUND,
        memory_budget: Bytes | None = None,
        execution: dict[str, Execution] | None = None,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 (frozen)
        cosine_bound: float = COSINE_BOUND,
        seed: int = 0,
        folder: str = "runs/evaluate",
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
        self.protocol = protocol
        self.certificate_bound = certificate_bound
        self.memory_budget = memory_budget
        self.acceleration = acceleration
        self.cosine_bound = cosine_bound
        self.seed = seed
        self.weights = {"classifier": folder_hash(resolve(classifier))}
        self.shared_classifier = load_classifier(classifier)
        used = {config.denoiser for config in defenses.values()}
        loaded = {key: load_denoiser(path) for key, path in denoisers.items() if key in used}
        self.weights |= {f"denoiser {key}": folder_hash(resolve(denoisers[key])) for key in loaded}
        self.rows = build_rows(defenses, self.shared_classifier, loaded, acceleration)
        if unknown := set(execution or {}) - set(self.rows):
            raise InputError(f"--model.execution names no row of the table: {', '.join(unknown)}")
        self.execution = dict(execution or {})
        self.networks = nn.ModuleList(  # moves them to the device
            defense for row in self.rows.values() for defense in row.defenses
        )
        started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self.folder = RunFolder(Path(folder) / started)
        self.certificates: dict[str, dict[str, Any]] = {}
        self.figure_rows: list[Panel] = []

    def prepare(self, data: Any, batch: dict[str, Tensor]) -> None:
        """Checks that networks and data belong together, and fixes what the executions leave open,
        for blocks like `batch` on the device where this module is."""
        check_classifier(self.shared_classifier, data)
        for row in self.rows.values():
            if row.defense.denoiser is not None:
                check_denoiser(row.defense.denoiser, data)
        check_images(batch["image"], where="the data", samples=batch["sample"])
        self.budget = self.memory_budget or budget_bytes(self.device)
        for name, row in self.rows.items():
            row.resolve(self.execution.get(name), batch["image"], self.attack, self.budget)
            self.execution[name] = row.attacked.execution

    def certify(self, images: Tensor, samples: Tensor) -> Iterator[str]:
        """Computes the certificates of all rows; each row's name is given before its turn."""
        for name, row in self.rows.items():
            yield name
            self.certificates[name] = row.certify(
                images,
                samples,
                seed=self.seed,
                bound=self.certificate_bound,
                budget=self.memory_budget if self.device.type == "cpu" else None,
                cosine_bound=self.cosine_bound,
            )

    def plan(self, images: Tensor, count: int) -> dict[str, RowPlan]:
        """By row, what `count` images cost in blocks like `images` (B, C, H, W)."""
        return {
            name: row.plan(images, self.attack, self.protocol, count)
            for name, row in self.rows.items()
        }

    def on_test_start(self) -> None:
        if torch.is_inference_mode_enabled():
            raise InputError(
                "the trainer runs in inference mode: set --trainer.inference_mode=false"
            )
        # Lightning's handler waits for the end of an epoch: here, the whole run. Finished blocks
        # are on the disk, so ending at once loses no record.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Before anything is computed: a commit made during a run is not the code that ran.
        self.provenance = provenance(Path(__file__).parent, self.device)
        loader: DataLoader[Any] = self.trainer.test_dataloaders  # type: ignore[assignment]
        images = len(loader.dataset)  # type: ignore[arg-type]
        self.progress = AttackProgress(
            self.attack,
            self.protocol,
            {name: row.defense for name, row in self.rows.items()},
            {name: row.attacked for name, row in self.rows.items()},
            images,
        )
        self.progress.start()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        try:
            self._evaluate(batch, batch_idx)
        except BaseException:
            self.progress.stop()  # gives the terminal back before the error is printed
            raise

    @torch.enable_grad()
    def _evaluate(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        check_images(batch["image"], where="the data", samples=batch["sample"])
        block = Block(batch["image"], batch["label"], batch["sample"])
        outcomes = {}
        if batch_idx == 0:  # all of them first: a row that cannot run stops no run half-way
            self._certify(block)
        for name, row in self.rows.items():
            start = time.perf_counter()
            outcome = evaluate_block(
                name,
                row.defense,
                self.attack,
                block,
                self.protocol,
                self.seed,
                attacked=row.attacked,
                progress=self.progress.of(name),
            )
            seconds = time.perf_counter() - start
            self.progress.finished(name, outcome.records)
            self.folder.append_records(outcome.records)
            self.folder.append_timing({"defense": name, "block": batch_idx, "seconds": seconds})
            outcomes[name] = outcome
        self.folder.write_images(
            f"block_{batch_idx:05d}",
            {"clean": block.images, "sample": block.samples}
            | {name: outcome.adversarial for name, outcome in outcomes.items()},
        )
        if batch_idx == 0:
            defenses = {name: row.defense for name, row in self.rows.items()}
            self.figure_rows = outcome_panels(
                defenses, block, outcomes, self._data.class_names, self.seed
            )

    def _certify(self, block: Block) -> None:
        start = time.perf_counter()
        for name in self.certify(block.images, block.samples):
            self.progress.describe(f"gradient certificate: {name}")
        self.folder.append_timing({"certificates": time.perf_counter() - start})
        for name, certificates in self.certificates.items():
            for found in certificates.values():
                if not found["passed"]:
                    raise InputError(failure(name, found))

    def on_test_end(self) -> None:
        self.progress.stop()
        results = self._results()
        self.folder.write_results(results)
        draw(self.figure_rows, self.folder.path / "figure.png")
        write_report(results, self.folder.path, "figure.png")
        console = Console(width=None if Console().is_terminal else 140)
        console.print(terminal(results))
        console.print(f"run folder: {self.folder.path} (report.md, results.json)", soft_wrap=True)

    @property
    def _data(self) -> ImageData:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _looser(self) -> list[str]:
        """Which gradients were allowed to be less exact than by default."""
        found = []
        if self.acceleration.active:
            found.append(f"the diffusion network's calls: {self.acceleration.describe()}")
        if self.certificate_bound > BOUND or self.cosine_bound < COSINE_BOUND:
            found.append(
                f"gradients may be {self.certificate_bound:g} from finite differences (full:"
                f" {BOUND:g}) and have cosines of {self.cosine_bound:g} (full: {COSINE_BOUND:g})"
            )
        return found

    def _results(self) -> dict[str, Any]:
        records = self.folder.read_records()
        timing = self.folder.read_timing()
        defenses = summarise(records, self.baseline)
        for name, summary in defenses.items():
            defense = self.rows[name].defense
            summary["purification_calls"] = defense.network_calls
            summary |= self.certificates[name]
            summary["execution"] = asdict(self.rows[name].attacked.execution)
            summary["cost"] = {
                "network_calls": summary.pop("network_calls"),
                "seconds": sum(t["seconds"] for t in timing if t.get("defense") == name),
                "latency_seconds": latency(defense, self.figure_rows[0].images[:1].to(self.device)),
            }
        weaker = [*self.attack.weaker_than_full(), *self.protocol.weaker_than_full()]
        for row in self.rows.values():
            weaker += row.weaker_than_full(self.certificates[row.name])
        weaker += self._looser()
        return {
            "schema": SCHEMA,
            "samples": len({record.sample for record in records}),
            "run": {
                "data": self._data.description,
                "attack": self.attack.describe(),
                "report_draws": self.protocol.report_draws,
                "selection_draws": self.protocol.selection_draws,
                "baseline": self.baseline,
                "network_call": self.acceleration.describe(),
            },
            "defenses": defenses,
            "weaker_than_full": weaker,
            "cost": {
                "peak_memory_bytes": peak_memory(self.device),
                "certificate_seconds": sum(t.get("certificates", 0) for t in timing),
            },
            "provenance": self.provenance
            | {"weights": self.weights, "data": self._data.files_sha256()},
            "config": (self.folder.path / "config.yaml").read_text(),
        }


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete config into the run's folder before anything is computed."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RobustnessEvaluation)
        if trainer.is_global_zero:
            pl_module.folder.path.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, pl_module.folder.path / "config.yaml", skip_none=False, multifile=False
            )
