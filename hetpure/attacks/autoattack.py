"""The official AutoAttack (Croce & Hein 2020, arXiv 2003.01690), as the package pyautoattack runs
it, on a defence whose noise is by sample id."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyautoattack import AutoAttack as Official
from torch import Tensor

from hetpure.attacks.attack import (
    SILENT,
    Addresses,
    Attack,
    Monitor,
    Threat,
    check_radius,
    unknown_groups,
)
from hetpure.attacks.row_model import Listener, RowModel, in_one_line, undisturbed
from hetpure.defense import Defense
from hetpure.errors import InputError, check_choice
from hetpure.geometry import Norm, project
from hetpure.noise import Group
from hetpure.numbers import Number

Version = Literal["standard", "rand"]
Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
PARTS: dict[Version, tuple[Part, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
LEAST_CLASSES: dict[Part, int] = {"apgd-dlr": 3, "apgd-t": 4}  # what its loss needs
FULL = {"steps": 100, "eot_samples": 20, "targets": 9, "square_queries": 5000}


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack in the version `standard` (deterministic defences) or `rand` (stochastic ones).

    Every call of the defence is on noise of its own, but for what the attacker knows, and with the
    mask of the very rows that it is asked about. One candidate an image: what AutoAttack found, or
    the image itself where it gave up. It stops attacking an image after a single wrong answer, the
    clean one included, so against a stochastic defence its `rand` overlooks images that are right
    nearly always (see AutoEOT), and its candidates are counted by the protocol, not by its own
    account. Its random starts are those of a block and a batch, not of a sample id.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        norm: of the ball.
        version: the official set of attacks.
        steps: of APGD and FAB; officially 100.
        eot_samples: noise draws of each gradient of `rand`; officially 20.
        targets: target classes of the targeted attacks; officially 9, or as many as there are.
        square_queries: officially 5000.
        attacks: only these of the version's attacks.
        verbose: print what AutoAttack prints.
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    norm: Norm = "linf"
    version: Version = "standard"
    steps: int = FULL["steps"]
    eot_samples: int = FULL["eot_samples"]
    targets: int = FULL["targets"]
    square_queries: int = FULL["square_queries"]
    attacks: tuple[Part, ...] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        check_radius(self.epsilon, self.norm)
        check_choice("--model.attack.norm", self.norm, Norm)
        check_choice("--model.attack.version", self.version, Version)
        for name in FULL:
            if getattr(self, name) < 1:
                raise InputError(f"--model.attack.{name} must be >= 1, got {getattr(self, name)}")
        unknown = set(self.attacks or ()) - set(PARTS[self.version])
        if unknown or self.attacks == ():
            raise InputError(
                f"--model.attack.attacks is {self.attacks}: version {self.version} has"
                f" {', '.join(PARTS[self.version])}"
            )

    @property
    def name(self) -> str:
        return f"autoattack_{self.version}_{self.norm}"

    @property
    def threat(self) -> Threat:
        return Threat(self.norm, self.epsilon)

    def describe(self) -> str:
        eot = f", EOT {self.eot_samples}" if self.version == "rand" else ""
        return f"{self.threat}, AutoAttack {self.version}: {', '.join(self._asked)}{eot}"

    @property
    def _asked(self) -> tuple[Part, ...]:
        """The attacks wanted, in the official order."""
        return tuple(p for p in PARTS[self.version] if self.attacks is None or p in self.attacks)

    def parts(self, classes: int) -> tuple[Part, ...]:
        """The attacks that can be run against so many classes, in order."""
        found = tuple(part for part in self._asked if classes >= LEAST_CLASSES.get(part, 2))
        if not found:
            raise InputError(
                f"none of AutoAttack's {', '.join(self._asked)} can attack {classes} classes"
            )
        return found

    def weaker_than_full(self) -> list[str]:
        asked = {*self._asked}
        matters = {
            "steps": bool(asked - {"square"}),
            "eot_samples": self.version == "rand",
            "targets": bool(asked & {"apgd-t", "fab-t"}),
            "square_queries": "square" in asked,
        }
        found = [
            f"{self.name}: {getattr(self, name)} {name.replace('_', ' ')} (official: {full})"
            for name, full in FULL.items()
            if matters[name] and getattr(self, name) < full
        ]
        left_out = [part for part in PARTS[self.version] if part not in self._asked]
        if left_out:
            found.append(f"{self.name}: without {', '.join(left_out)}")
        return found

    def notes(self, classes: int) -> list[str]:
        left_out = set(self._asked) - set(self.parts(classes))
        return [
            f"{self.name}: without {part}, which needs {LEAST_CLASSES[part]} classes"
            for part in self._asked
            if part in left_out
        ]

    def candidates(self, defense: Defense) -> int:
        return 1

    def draws(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        return 1  # its draws are asked one after another

    def purifications(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """An upper bound, reached by an image that is never broken."""
        steps, eot = self.steps, self._eot(defense, known)
        targets = self._targets(defense.classifier.num_classes)
        costs: dict[Part, int] = {
            "apgd-ce": (steps + 1) * eot,
            "apgd-dlr": (steps + 1) * eot,
            "apgd-t": targets * (steps + 1) * eot,
            "fab-t": targets * steps,
            "square": 0,
        }
        return sum(costs[part] for part in self.parts(defense.classifier.num_classes))

    def queries(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """An upper bound, reached by an image that is never broken and is in the first batch, which
        the library's checks look at."""
        targets = self._targets(defense.classifier.num_classes)
        costs: dict[Part, int] = {
            "apgd-ce": 2,
            "apgd-dlr": 2,
            "apgd-t": 2 + targets,
            "fab-t": 2 + targets * (self.steps + 3),
            "square": self.square_queries + 4,
        }
        checks = 3 if self.version == "rand" else 8
        return checks + sum(costs[part] for part in self.parts(defense.classifier.num_classes))

    def _eot(self, defense: Defense, known: tuple[Group, ...]) -> int:
        drawn = self.version == "rand" and unknown_groups(defense, known)
        return self.eot_samples if drawn else 1

    def _targets(self, classes: int) -> int:
        return min(self.targets, classes - 1)

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        *,
        monitor: Monitor = SILENT,
    ) -> Tensor:
        if self.version == "standard" and unknown_groups(defense, addresses.known):
            raise InputError(
                "AutoAttack's version standard is for deterministic defences, and this one draws"
                " noise: take --model.attack.version=rand, or AutoEOT, which counts over draws"
            )
        model = RowModel(defense, images, addresses, self.threat, monitor)
        plain = images.detach().float().contiguous()  # APGD and FAB attack in float32 whatever
        with undisturbed(self.verbose), in_one_line(model):
            official = self._official(model, plain.device, addresses)
            found, _ = official.run_standard_evaluation(
                plain, labels, batch_size=defense.execution.micro_batch or len(images)
            )
        moved = (found != plain).flatten(1).any(1)
        inside = _inside(found.to(images), images, self.threat)
        found = torch.where(
            inside, found.to(images), project(found.to(images), images, self.epsilon, self.norm)
        )
        return torch.where(moved[:, None, None, None], found, images)[None]

    def _official(self, model: RowModel, device: torch.device, addresses: Addresses) -> Any:
        """The library's object with this budget."""
        official: Any = Official(
            model,
            device=device,
            eps=float(self.epsilon),
            norm="Linf" if self.norm == "linf" else "L2",
            seed=addresses.noise.seed,
            version=self.version,
        )
        classes = model.defense.classifier.num_classes
        official.attacks_to_run = list(self.parts(classes))
        for apgd in (official.apgd, official.apgd_targeted):
            apgd.eot_iter = self._eot(model.defense, addresses.known)
            apgd.n_iter = self.steps
            # Its checkpoints (Croce & Hein 2020, section 3.1), else those of 100 iterations.
            apgd.n_iter_2 = max(int(0.22 * self.steps), 1)
            apgd.n_iter_min = max(int(0.06 * self.steps), 1)
            apgd.size_decr = max(int(0.03 * self.steps), 1)
        official.apgd_targeted.n_target_classes = self._targets(classes)
        official.fab.n_target_classes = self._targets(classes)
        official.fab.n_iter = self.steps
        official.fab.perturb = model.one_by_one(official.fab.perturb)
        official.square.n_queries = self.square_queries
        logger = Listener(self.verbose)
        official.logger = official.apgd.logger = official.apgd_targeted.logger = logger
        return official


def _inside(moved: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """(B, 1, 1, 1) whether each moved image is in the ball around its own, and a picture."""
    order = torch.inf if threat.norm == "linf" else 2
    size: Tensor = torch.linalg.vector_norm(moved - images, order, dim=(1, 2, 3), keepdim=True)
    pixels = ((moved >= 0) & (moved <= 1)).flatten(1).all(1)[:, None, None, None]
    return (size <= threat.epsilon) & pixels
