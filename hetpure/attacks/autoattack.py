"""The official AutoAttack (Croce & Hein 2020, arXiv 2003.01690), as the package pyautoattack runs
it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyautoattack import AutoAttack as Official
from torch import Tensor

from hetpure.attacks.attack import Cost, InBall, Target
from hetpure.attacks.library_model import (
    LibraryModel,
    Listener,
    check_needs_no_ids,
    undisturbed,
)
from hetpure.defense import Defense
from hetpure.errors import FieldError, check_at_least, check_choice
from hetpure.geometry import project
from hetpure.noise import Group

Version = Literal["standard", "rand"]
Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
PARTS: dict[Version, tuple[Part, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
LEAST_CLASSES: dict[Part, int] = {"apgd-dlr": 3, "apgd-t": 4}  # what its loss needs
CHECKS: dict[Version, int] = {"standard": 8, "rand": 3}  # queries before the first attack
FULL = {"steps": 100, "eot_samples": 20, "targets": 9, "square_queries": 5000}


@dataclass(frozen=True, kw_only=True)
class AutoAttack(InBall):
    """AutoAttack in the version `standard` (deterministic defences) or `rand` (stochastic ones).

    Every call of the defence is on fresh noise, and with the mask of the very images that it is
    asked about. There is one candidate an image: what AutoAttack found, or the image itself where
    it gave up. AutoAttack stops attacking an image after a single wrong answer, the clean one
    included. So against a stochastic defence `rand` overlooks images that are right nearly always
    (see AutoEOT), and its candidates are counted by the protocol, not by its own account. Noise and
    random starts are those of a block and a place in it, not of a sample id: see `LibraryModel` for
    what is refused therefore.

    Args:
        version: the official set of attacks.
        steps: of APGD and FAB; officially 100.
        eot_samples: noise draws of each gradient of `rand`; officially 20.
        targets: target classes of the targeted attacks; officially 9, or as many as there are.
        square_queries: officially 5000.
    """

    version: Version = "standard"
    steps: int = FULL["steps"]
    eot_samples: int = FULL["eot_samples"]
    targets: int = FULL["targets"]
    square_queries: int = FULL["square_queries"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "version", Version)
        check_at_least(self, 1, *FULL)

    @property
    def name(self) -> str:
        return f"autoattack_{self.version}_{self.norm}"

    def parts(self, classes: int) -> tuple[Part, ...]:
        """The version's attacks that can be run against so many classes, in the official order."""
        return tuple(p for p in PARTS[self.version] if classes >= LEAST_CLASSES.get(p, 2))

    def weaker_than_full(self) -> list[str]:
        return [
            line for field, full in FULL.items() for line in self.below(field, full, "official")
        ]

    def notes(self, classes: int) -> list[str]:
        return [
            f"{self.name}: without {part}, which needs {least} classes"
            for part, least in LEAST_CLASSES.items()
            if part in PARTS[self.version] and classes < least
        ]

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """At most: of an image that is never broken, in the batch that the library's checks see."""
        classes = defense.classifier.num_classes
        steps, eot, targets = self.steps, self._eot(defense), self._targets(classes)
        apgd = (steps + 1) * eot
        costs: dict[Part, tuple[int, int]] = {  # gradients, and queries without one
            "apgd-ce": (apgd, 2),
            "apgd-dlr": (apgd, 2),
            "apgd-t": (targets * apgd, 2 + targets),
            "fab-t": (targets * steps, 2 + targets * (steps + 3)),
            "square": (0, self.square_queries + 4),
        }
        gradients, queries = zip(*(costs[part] for part in self.parts(classes)), strict=True)
        return Cost(gradients=sum(gradients), queries=CHECKS[self.version] + sum(queries))

    def _eot(self, defense: Defense) -> int:
        return self.eot_samples if self.version == "rand" and defense.stochastic else 1

    def _targets(self, classes: int) -> int:
        return min(self.targets, classes - 1)

    def check(self, defense: Defense, samples: Tensor, known: tuple[Group, ...] = ()) -> None:
        check_needs_no_ids(defense, known)
        if self.version == "standard" and defense.stochastic:
            advice = "make it rand, or take AutoEOT, which counts over draws"
            raise FieldError(self, "version", f"is standard, and the defence draws noise: {advice}")

    def __call__(self, target: Target) -> Tensor:
        defense, images = target.defense, target.images
        self.check(defense, target.samples, target.addresses.known)
        model = LibraryModel(target)
        plain = images.detach().float().contiguous()  # APGD and FAB attack in float32 whatever
        with undisturbed():
            library = self._library(model, plain.device, target.addresses.noise.seed)
            adversarial, _ = library.run_standard_evaluation(
                plain, target.labels, batch_size=defense.execution.micro_batch or len(images)
            )
        moved = (adversarial != plain).flatten(1).any(1)[:, None, None, None]
        inside = project(adversarial.to(images), images, self.epsilon, self.norm)
        return torch.where(moved, inside, images)[None]

    def _library(self, model: LibraryModel, device: torch.device, seed: int) -> Any:
        """The library's object with this budget."""
        library: Any = Official(
            model,
            device=device,
            eps=float(self.epsilon),
            norm=self.norm.capitalize(),
            seed=seed,
            version=self.version,
        )
        defense = model.target.defense
        classes = defense.classifier.num_classes
        library.attacks_to_run = list(self.parts(classes))
        for apgd in (library.apgd, library.apgd_targeted):
            apgd.eot_iter = self._eot(defense)
            apgd.n_iter = self.steps
            # Its checkpoints (Croce & Hein 2020, section 3.1), else those of 100 iterations.
            apgd.n_iter_2 = max(int(0.22 * self.steps), 1)
            apgd.n_iter_min = max(int(0.06 * self.steps), 1)
            apgd.size_decr = max(int(0.03 * self.steps), 1)
        library.apgd_targeted.n_target_classes = self._targets(classes)
        library.fab.n_target_classes = self._targets(classes)
        library.fab.n_iter = self.steps
        library.square.n_queries = self.square_queries
        library.logger = library.apgd.logger = library.apgd_targeted.logger = Listener()
        return library
