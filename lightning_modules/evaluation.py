"""Evaluation of several defences side by side under one attack, as a Lightning test loop."""

import signal
import textwrap
import time
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
from hetpure.attacks import PGD, Attack
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.certificate import certify_defense
from hetpure.evaluation.protocol import Block, Outcome, Protocol, evaluate_block
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import SCHEMA, peak_memory, provenance, summarise
from hetpure.noise import Noise, Stream
from hetpure.report.figure import Panel, draw
from hetpure.report.report import write_report
from hetpure.report.table import terminal
from hetpure.weights import folder_hash, load_classifier, load_denoiser, resolve
from lightning_modules.compatibility import ImageData, check_classifier, check_denoiser
from lightning_modules.defenses import DefenseConfig, Sweep, differing
from lightning_modules.progress import AttackProgress

FIGURE_ROWS = 6


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
        certificate_bound: float = 1e-5,
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
        self.seed = seed
        self.weights = {"classifier": folder_hash(resolve(classifier))}
        self.shared_classifier = load_classifier(classifier)
        self.rows: dict[str, Defense] = {}
        self.surrogates: dict[str, Defense] = {}
        loaded = {}
        for name, config in defenses.items():
            key = config.denoiser
            if key is not None and key not in denoisers:
                raise InputError(
                    f"--model.defenses.{name}.denoiser {key!r} is not among --model.denoisers"
                    f" ({', '.join(denoisers)})"
                )
            if key is not None and key not in loaded:
                self.weights[f"denoiser {key}"] = folder_hash(resolve(denoisers[key]))
                loaded[key] = load_denoiser(denoisers[key])
            denoiser = loaded[key] if key is not None else None
            self.rows[name], surrogate = config.build(self.shared_classifier, denoiser)
            if surrogate is not None:
                self.surrogates[name] = surrogate
        self.defenses = nn.ModuleList(self.rows.values())  # moves them to the device
        started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self.folder = RunFolder(Path(folder) / started)
        self.certificates: dict[str, dict[str, Any]] = {}
        self.surrogate_certificates: dict[str, dict[str, Any]] = {}
        self.figure_rows: list[Panel] = []

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
        check_classifier(self.shared_classifier, self._data)
        for defense in self.rows.values():
            if defense.denoiser is not None:
                check_denoiser(defense.denoiser, self._data)
        loader: DataLoader[Any] = self.trainer.test_dataloaders  # type: ignore[assignment]
        images = len(loader.dataset)  # type: ignore[arg-type]
        self.progress = AttackProgress(self.attack, self.protocol, self.rows, self.attacked, images)
        self.progress.start()

    @property
    def attacked(self) -> dict[str, Defense]:
        """What the attack differentiates for each row: the defence, or its surrogate."""
        return self.rows | self.surrogates

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
            for name, defense in self.rows.items():
                self.certificates[name] = self._certify(name, defense, block)
            for name, surrogate in self.surrogates.items():
                self.surrogate_certificates[name] = self._certify(name, surrogate, block)
        for name, defense in self.rows.items():
            start = time.perf_counter()
            outcome = evaluate_block(
                name,
                defense,
                self.attack,
                block,
                self.protocol,
                self.seed,
                attacked=self.attacked[name],
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
            self.figure_rows = self._panels(block, outcomes)

    def _certify(self, name: str, defense: Defense, block: Block) -> dict[str, Any]:
        certificate = certify_defense(
            defense, block.images, block.samples, self.seed, bound=self.certificate_bound
        )
        if not certificate.passed:
            raise InputError(
                f"the gradient of defence {name!r} failed its certificate: {certificate.as_dict()}"
            )
        return certificate.as_dict()

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

    def _results(self) -> dict[str, Any]:
        records = self.folder.read_records()
        timing = self.folder.read_timing()
        defenses = summarise(records, self.baseline)
        for name, summary in defenses.items():
            defense = self.rows[name]
            summary["purification_calls"] = defense.network_calls
            summary["certificate"] = self.certificates[name]
            if name in self.surrogates:
                summary["surrogate_certificate"] = self.surrogate_certificates[name]
            summary["cost"] = {
                "network_calls": summary.pop("network_calls"),
                "seconds": sum(t["seconds"] for t in timing if t["defense"] == name),
                "latency_seconds": self._latency(defense),
            }
        weaker = [*self.attack.weaker_than_full(), *self.protocol.weaker_than_full()]
        weaker += [
            f"{name}: the attack differentiates a surrogate of {surrogate.network_calls} network"
            f" calls, not the defence's {self.rows[name].network_calls}"
            f" ({differing(surrogate.purifier, self.rows[name].purifier)})"
            for name, surrogate in self.surrogates.items()
        ]
        return {
            "schema": SCHEMA,
            "samples": len({record.sample for record in records}),
            "run": {
                "data": self._data.description,
                "attack": self.attack.describe(),
                "report_draws": self.protocol.report_draws,
                "selection_draws": self.protocol.selection_draws,
                "baseline": self.baseline,
            },
            "defenses": defenses,
            "weaker_than_full": weaker,
            "cost": {"peak_memory_bytes": peak_memory(self.device)},
            "provenance": self.provenance
            | {"weights": self.weights, "data": self._data.files_sha256()},
            "config": (self.folder.path / "config.yaml").read_text(),
        }

    @torch.no_grad()
    def _latency(self, defense: Defense) -> float:
        """Seconds for one image to be purified and classified, the second call of two."""
        image, noise = self.figure_rows[0].images[:1].to(self.device), self._probe(1)
        for _ in range(2):
            start = time.perf_counter()
            defense(image, noise).argmax(1).tolist()  # waits for the device
            seconds = time.perf_counter() - start
        return seconds

    def _probe(self, count: int) -> Any:
        return Noise.of(self.seed, Stream.PROBE).on(torch.arange(count, device=self.device))

    @torch.no_grad()
    def _panels(self, block: Block, outcomes: dict[str, Outcome]) -> list[Panel]:
        """Clean, then for each defence with a purifier: adversarial, mask, purified."""
        rows = slice(0, FIGURE_ROWS)
        names = self._data.class_names
        images, samples = block.images[rows], block.samples[rows]
        noise = Noise.of(self.seed, Stream.REPORT).on(samples)
        panels = [Panel("clean", images, [names[label] for label in block.labels[rows].tolist()])]
        for name, outcome in outcomes.items():
            defense = self.rows[name]
            if not defense.stochastic:
                continue
            label = textwrap.fill(name, 16)
            adversarial = outcome.adversarial[rows]
            plain = self.shared_classifier(adversarial).argmax(1).tolist()
            mask = defense.mask(adversarial, samples)
            purified = defense.purify(adversarial, noise, mask)
            answers = self.shared_classifier(purified).argmax(1).tolist()
            panels.append(Panel(f"{label}\nadversarial", adversarial, [names[k] for k in plain]))
            if mask is not None:
                shares = [f"{100 * share:.0f}%" for share in mask.flatten(1).mean(1).tolist()]
                panels.append(Panel(f"{label}\nmask", mask, shares))
            panels.append(Panel(f"{label}\npurified", purified, [names[k] for k in answers]))
        return panels


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete config into the run's folder before anything is computed."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RobustnessEvaluation)
        if trainer.is_global_zero:
            pl_module.folder.path.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, pl_module.folder.path / "config.yaml", skip_none=False, multifile=False
            )
