"""What an evaluation is: its config, and the description of the run that networks, images and a
device make of it. Nothing changes in a description while the run goes on."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, accelerate, best_precision
from hetpure.attacks import PGD, Attack
from hetpure.classifiers import FoldedClassifier
from hetpure.compatibility import check_all_answers, check_defense
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.disk import tensor_hash
from hetpure.errors import FieldError, InputError, check_positive
from hetpure.evaluation.audit import Audit, longest_slices
from hetpure.evaluation.cells import (
    AttackConfig,
    attack_cells,
    audit_cells,
    base_cell,
    check_attacks,
)
from hetpure.evaluation.cost import audit_costs, cell_cost
from hetpure.evaluation.identity import device_kind, plain
from hetpure.evaluation.protocol import Block, Cell, Protocol
from hetpure.evaluation.provenance import versions
from hetpure.evaluation.rows import DefenseConfig, Row, build_rows, check_names
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.evaluation.store import Store
from hetpure.gradient_check import float64_device
from hetpure.gradients import Execution
from hetpure.memory import budget_bytes
from hetpure.noise import check_seed
from hetpure.numbers import Bytes
from hetpure.weights import folder_hash, load_classifier, load_denoiser
from hetpure.weights.folders import resolve_all, trained_on_of

GRADIENT_BOUND, COSINE_BOUND = 1e-5, 0.99
LONGEST = 600.0  # seconds that one file of a store may stand for: a kill loses no more


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The config of an evaluation.

    Args:
        classifier: packaged name or folder of the classifier that all defences share.
        denoisers: names of diffusion weights, each a packaged name or a diffusers folder.
        defenses: rows of the table by name.
        baseline: row that every other one is compared with, paired by sample.
        attack: the main attack, against every row: the audit varies it, and its ball is the one
            that `robust` is about.
        attacks: further attacks by name.
        cascade: further attacks in the main attack's ball skip images that an attack before them
            made wrong on all selection draws. What is `robust` stays the same; a skipped image
            counts under the later attack as the earlier one left it.
        protocol: how draws are counted.
        audit: sanity checks of the attack on the first images; null leaves them out, which the
            results say.
        gradient_bound: largest relative error of the gradient against finite differences on
            the run's own configuration, where clamps and ReLUs have kinks.
        memory_budget: bytes that gradients may take, as 8GB; by default six tenths of the free
            memory.
        execution: by row, how it is computed: policy, taped_steps and micro_batch. What is left
            open is chosen by memory and written here in the run's config.
        acceleration: precision, memory format and compilation of the diffusion network's call, and
            whether the classifier's batch norm is folded.
        cosine_bound: smallest mean cosine of the attack's gradient to the exact one, and of an
            accelerated gradient to the plain one.
        seed: of all noise.
    """

    classifier: str
    denoisers: dict[str, str]
    defenses: dict[str, DefenseConfig]
    baseline: str | None = None
    attack: Attack = field(default_factory=PGD)
    attacks: dict[str, AttackConfig] = field(default_factory=dict)
    cascade: bool = False
    protocol: Protocol = field(default_factory=Protocol)
    audit: Audit | None = field(default_factory=Audit)
    gradient_bound: float = GRADIENT_BOUND
    memory_budget: Bytes | None = None
    execution: dict[str, Execution] | None = None
    acceleration: Acceleration = field(default_factory=Acceleration)
    cosine_bound: float = COSINE_BOUND
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.defenses:
            raise InputError("defenses names no defence")
        for names in ("defenses", "denoisers", "attacks"):
            check_names(names, getattr(self, names))
        check_seed(self)
        check_positive(self, "gradient_bound")
        if not -1 <= self.cosine_bound <= 1:
            raise FieldError(self, "cosine_bound", f"must be in [-1, 1], got {self.cosine_bound}")
        if self.baseline is not None and self.baseline not in self.defenses:
            raise InputError(
                f"baseline {self.baseline!r} is not among the defences: {', '.join(self.defenses)}"
            )
        for name, row in self.defenses.items():
            if row.denoiser is not None and row.denoiser not in self.denoisers:
                raise InputError(
                    f"defenses.{name}.denoiser {row.denoiser!r} is not among the denoisers"
                    f" ({', '.join(self.denoisers)})"
                )
        check_attacks(self.attacks, self.defenses, self.attack)
        if unknown := set(self.execution or {}) - set(self.defenses):
            raise InputError(f"execution names no row of the table: {', '.join(unknown)}")


@dataclass(frozen=True)
class Images:
    """The images of a run, read block by block.

    Args:
        description: of the data, in a few words.
        class_names: of the labels.
        samples: ids of all images (N,), in order.
        read: gives the images at these positions, in their order, on the run's device.
        files: SHA-256 of the files that they come from, by name.
        data_set: what trained weights are told apart by, empty where nothing is known.
    """

    description: str
    class_names: tuple[str, ...]
    samples: Tensor
    read: Callable[[Sequence[int]], Block]
    files: Mapping[str, str] = field(default_factory=dict)
    data_set: str = ""

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor,
        class_names: tuple[str, ...],
        samples: Tensor | None = None,
        description: str = "images",
    ) -> "Images":
        """Images (N, C, H, W), pixel [0, 1], with labels (N,) that are in memory. Ids are positions
        where none are given."""
        samples = torch.arange(len(images)) if samples is None else samples

        def read(positions: Sequence[int]) -> Block:
            part = torch.tensor(list(positions))
            return Block(images[part], labels[part], samples[part].to(images.device))

        files = {"images": tensor_hash(images), "labels": tensor_hash(labels)}
        return cls(description, class_names, samples.cpu(), read, files)

    def __len__(self) -> int:
        return len(self.samples)

    def identity(self) -> dict[str, Any]:
        """What makes them these images."""
        ids, files = tensor_hash(self.samples.long()), dict(self.files)
        return {"description": self.description, "count": len(self), "ids": ids, "files": files}


@dataclass(frozen=True)
class Networks:
    """The rows of a config with their weights, the weights' hashes, and which data sets they were
    trained on, where their folders say so."""

    rows: Mapping[str, Row]
    weights: Mapping[str, str]
    trained_on: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: Evaluation) -> "Networks":
        """Reads the weights that the rows need. What calls them in a precision that is to be chosen
        is still plain."""
        wanted = config.defenses.values()
        others = [row.classifier for row in wanted if row.classifier is not None]
        keys = [key for key in config.denoisers if key in {row.denoiser for row in wanted}]
        folders = {"classifier": config.classifier}
        folders |= {f"classifier {name}": name for name in others}
        folders |= {f"denoiser {key}": config.denoisers[key] for key in keys}
        found = resolve_all(folders)
        auto = config.acceleration.precision == "auto"
        rows = build_rows(
            config.defenses,
            load_classifier(config.classifier),
            {name: load_classifier(name) for name in others},
            {key: load_denoiser(config.denoisers[key]) for key in keys},
            Acceleration(fold_batch_norm=config.acceleration.fold_batch_norm)
            if auto
            else config.acceleration,
        )
        trained_on = {name: trained_on_of(folder) for name, folder in found.items()}
        hashes = {name: folder_hash(folder) for name, folder in found.items()}
        return cls(rows, hashes, {name: data for name, data in trained_on.items() if data})

    def denoisers(self) -> list[Denoiser]:
        """Those of all rows, each once."""
        defenses = [
            defense for row in self.rows.values() for defense in (row.defense, row.attacked)
        ]
        return list(dict.fromkeys(d.denoiser for d in defenses if d.denoiser is not None))

    def accelerated(self, acceleration: Acceleration) -> "Networks":
        """The same rows with their plain diffusion networks called so."""
        fast = {denoiser: accelerate(denoiser, acceleration) for denoiser in self.denoisers()}

        def called(defense: Defense) -> Defense:
            return defense if defense.denoiser is None else defense.copy(fast[defense.denoiser])

        rows = {
            name: replace(
                row, defense=called(row.defense), surrogate=row.surrogate and called(row.surrogate)
            )
            for name, row in self.rows.items()
        }
        return replace(self, rows=rows)

    def modules(self) -> nn.ModuleList:
        """All networks, to be moved to a device."""
        return nn.ModuleList(
            defense for row in self.rows.values() for defense in (row.defense, row.attacked)
        )


@dataclass(frozen=True)
class Run:
    """An evaluation as it is run.

    Args:
        config: of the evaluation.
        images: what it is run on.
        rows: by name, each with its cells, computed as the run computes it.
        weights: their hashes, by the names that the config gives them.
        trained_on: the data sets that they were trained on, where that is known.
        block: images of a block.
        device: of networks and images.
        budget: bytes that gradients may take on the device.
        check_budget: bytes that gradient checks may take where float64 is computed.
    """

    config: Evaluation
    images: Images
    rows: Mapping[str, Row]
    weights: Mapping[str, str]
    trained_on: Mapping[str, str]
    block: int
    device: torch.device
    budget: int
    check_budget: int

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self.images) // self.block)

    def positions(self, block: int) -> range:
        """Of the images of a block."""
        return range(block * self.block, min((block + 1) * self.block, len(self.images)))

    def blocks_of(self, positions: Sequence[int]) -> list[int]:
        """The blocks that images at these positions are of, each once, in order."""
        return sorted({position // self.block for position in positions})

    def main_cells(self, row: Row) -> list[tuple[Cell, int]]:
        """The cells of a row but for its audit, each with its images."""
        return [(cell, cell.images(len(self.images))) for cell in row.cells]

    def audit_slices(self, row: Row) -> list[tuple[Cell, int]]:
        """The cells of a row's audit, each with how many images it sees where no check is ever
        settled."""
        if self.config.audit is None:
            return []
        costs = audit_costs(row, self.config.protocol)
        slices = longest_slices(costs, self.config.audit, len(self.images), self.block)
        return [(cell, slices[cell.name]) for cell in row.audit]

    def read(self, block: int) -> Block:
        """The images of a block."""
        return self.images.read(self.positions(block))

    @property
    def execution(self) -> dict[str, Execution]:
        """How each row is computed."""
        return {name: row.attacked.execution for name, row in self.rows.items()}

    def identity(self) -> dict[str, Any]:
        """What makes it this run: runs of one identity give the same records on one build of torch
        with one number of threads. Weights stand for their paths."""
        config, weights = plain(self.config), dict(self.weights)
        for name in ("memory_budget", "classifier", "denoisers"):
            del config[name]
        config["denoisers"] = sorted(self.config.denoisers)
        config["execution"] = plain(self.execution)
        for row in config["defenses"].values():
            if row["classifier"] is not None:
                row["classifier"] = weights.pop(f"classifier {row['classifier']}", "-")
        attacks = {"attack": self.config.attack}
        attacks |= {name: further.attack for name, further in self.config.attacks.items()}
        replayed = {name: content for name, a in attacks.items() if (content := a.content())}
        return {
            "config": config,
            "weights": weights,
            "data": self.images.identity(),
            "replayed": replayed,
            "block": self.block,
            "versions": versions(),
            "device": device_kind(self.device),
        }


def describe(
    config: Evaluation,
    networks: Networks,
    images: Images,
    store: Store,
    *,
    device: torch.device,
    largest: int,
    sharing: int = 1,
) -> Run:
    """The run that a config makes of networks on the `device` and of images.

    A run that goes on keeps what it began with: how its rows are computed, and its blocks. A new
    one chooses: executions by memory, of which `sharing` processes each take a part, and blocks of
    at most `largest` images, so small that no file of the store stands for more than ten minutes.
    InputError where networks and images do not belong together.
    """
    before = store.read_run() or {}
    if config.acceleration.precision == "auto":  # a run that goes on keeps what it began with
        chosen = (
            before["identity"]["config"]["acceleration"]["precision"]
            if before
            else (
                best_precision(
                    config.acceleration, networks.denoisers(), device, config.cosine_bound
                )
            )
        )
        config = replace(config, acceleration=replace(config.acceleration, precision=chosen))
        networks = networks.accelerated(config.acceleration)
    host = config.memory_budget or budget_bytes(torch.device("cpu")) // sharing
    budget = host if device.type == "cpu" else config.memory_budget or budget_bytes(device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    here = float64_device(device) == device
    size = min(before.get("block", largest), len(images))
    first = images.read(range(size)).images
    check_networks(networks, images, first)
    begun, asked = before.get("execution", {}), config.execution or {}
    wishes = {name: _wish(asked.get(name), begun.get(name, {})) for name in networks.rows}
    rows = {}
    for name, row in networks.rows.items():
        row = row.copy()  # of which the run decides how it is computed
        limit = sys.maxsize if name in begun else budget  # it fitted, and is not chosen again
        row.compute(wishes[name], first, config.attack, limit)
        rows[name] = _with_cells(config, row, first, store)
        for cell in rows[name].cells:
            samples = images.samples[: cell.images(len(images))]
            cell.attack.check(row.attacked, samples, cell.known)
    run = Run(
        config,
        images,
        rows,
        networks.weights,
        networks.trained_on,
        size,
        device,
        budget,
        budget if here else host,
    )
    if before:
        return run
    block = min(
        size, max(1, int(LONGEST / max(_slowest(row, run, first) for row in rows.values())))
    )
    if block < size:  # what is computed at once is then smaller too
        for name, row in rows.items():
            row.compute(wishes[name], first[:block], config.attack, budget)
    return replace(run, block=block)


def check_networks(networks: Networks, images: Images, first: Tensor) -> None:
    """InputError unless the networks of every row are of the images' kind, and the classifiers give
    finite logits for the first of them (B, C, H, W)."""
    kind = SimpleNamespace(
        num_classes=len(images.class_names), channels=first.shape[1], image_size=first.shape[2:]
    )
    defenses = {name: row.defense for name, row in networks.rows.items()}
    classifiers = dict.fromkeys(defense.classifier for defense in defenses.values())
    for defense in defenses.values():
        check_defense(defense, kind)
        if defense.masked:
            defense.attention_mask.check(first, images.samples[: len(first)])
    check_all_answers(defenses, first)
    for classifier in classifiers:
        if isinstance(classifier, FoldedClassifier):
            height, width = first.shape[2:]
            classifier.check_rounding((height, width))


def _with_cells(config: Evaluation, row: Row, first: Tensor, store: Store) -> Row:
    """The row with what is run against it."""
    protocol = config.protocol
    cells = attack_cells(row.name, row.defense, config.attack, config.attacks, protocol)
    row = replace(row, cells=tuple(cells))
    if config.audit is None:
        return row
    base = base_cell(cells)
    read = partial(store.images, row.name, base.name)
    audit = audit_cells(base, row.defense, config.audit, first[0].numel(), read)
    return replace(row, audit=tuple(audit))


def _slowest(row: Row, run: Run, first: Tensor) -> float:
    """Seconds of one image in the row's dearest cell, timed once."""
    attacked = evaluated = Stopwatch(row.defense, first, repeats=1)
    if row.surrogate is not None:
        attacked = Stopwatch(row.surrogate, first, repeats=1)
    costs = (cell_cost(row, cell, run.config.protocol) for cell in row.cells + row.audit)
    return max(cost.seconds(evaluated, attacked) for cost in costs)


def _wish(asked: Execution | None, begun: Mapping[str, Any]) -> Execution:
    """What is asked for, beside what a run that goes on has: it keeps what is not asked for."""
    wish = {} if asked is None else asdict(asked)
    chosen = {name: value for name, value in wish.items() if value not in (None, "auto")}
    return Execution(**{**begun, **chosen})
