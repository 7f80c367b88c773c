"""The official AutoAttack (Croce & Hein 2020, arXiv 2003.01690), as the package pyautoattack runs
it, on a defence whose noise is by sample id."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import torch
from pyautoattack import AutoAttack as Official
from torch import Tensor

from hetpure.attacks.attack import (
    NAMES,
    ROUNDING,
    SILENT,
    Addresses,
    Attack,
    Monitor,
    Threat,
    unknown_groups,
)
from hetpure.defense import Defense
from hetpure.errors import InputError, check_choice
from hetpure.geometry import Norm, project
from hetpure.gradients import ADVICE, NOT_FINITE, GradientError
from hetpure.noise import Group, RowNoise, attack_draw
from hetpure.numbers import Number

Version = Literal["standard", "rand"]
Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
PARTS: dict[Version, tuple[Part, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
LEAST_CLASSES: dict[Part, int] = {"apgd-dlr": 3, "apgd-t": 4}  # what its loss needs
FULL = {"steps": 100, "eot_samples": 20, "targets": 9, "square_queries": 5000}


@dataclass(frozen=True)
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
        if not isfinite(self.epsilon) or self.epsilon < 0:
            raise InputError(f"--model.attack.epsilon must be >= 0, got {self.epsilon}")
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
        model = _Model(defense, images, addresses, self.threat, monitor)
        plain = images.detach().float().contiguous()  # APGD and FAB attack in float32 whatever
        with _undisturbed(self.verbose), _one_line(model):
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

    def _official(self, model: "_Model", device: torch.device, addresses: Addresses) -> Any:
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
        logger = _Logger(self.verbose)
        official.logger = official.apgd.logger = official.apgd_targeted.logger = logger
        return official


class _Model:
    """What the library takes for its model: rows (R, C, H, W) in, logits (R, classes) out.

    The library hands on rows without saying whose they are, in batches that shrink. All but FAB's
    lie in the ball around their own image, and no two of these balls meet, so the nearest image is
    the row's. FAB leaves the ball: it is given one image at a time. Where nothing hangs on the
    sample id none of this is needed, nor done.
    """

    def __init__(
        self,
        defense: Defense,
        images: Tensor,
        addresses: Addresses,
        threat: Threat,
        monitor: Monitor,
    ) -> None:
        self.defense = defense
        self.images = images.detach()
        self.addresses = addresses
        self.threat = threat
        self.monitor = monitor
        self.by_sample = bool(defense.groups) or defense.masked
        self.alone: int | None = None
        self.calls = 0
        self.error: Exception | None = None  # what the defence said, not the library
        if self.by_sample:
            _check_apart(self.images, addresses.samples, threat)

    def __call__(self, rows: Tensor) -> Tensor:
        if not len(rows):  # Square asks this where all that is left lies on the border
            return rows.new_zeros(0, self.defense.classifier.num_classes)
        try:
            return self._answer(rows)
        except Exception as error:
            self.error = error
            raise

    def _answer(self, rows: Tensor) -> Tensor:
        samples = self.addresses.samples[self.whose(rows)]
        differentiated = rows.requires_grad and torch.is_grad_enabled()
        images = rows.to(self.images.dtype).view_as(rows)
        if differentiated:
            images.register_hook(self._check_finite)  # type: ignore[no-untyped-call]
        mask = self.defense.mask(images.detach(), samples)
        logits: Tensor = self.defense(images, self._noise(samples), mask)
        if not logits.isfinite().all():
            raise GradientError(f"what the defence answers {NOT_FINITE}")
        (self.monitor.rows if differentiated else self.monitor.answered)(len(rows))
        return logits.to(rows.dtype)

    def whose(self, rows: Tensor) -> Tensor:
        """(R,) index of the image that each row belongs to."""
        if not self.by_sample or self.alone is not None:
            return torch.full((len(rows),), self.alone or 0, device=rows.device)
        distance, index = _distances(rows.to(self.images), self.images, self.threat.norm).min(1)
        farthest = int(distance.argmax())
        assert distance[farthest] <= _reach(self.images, self.threat), (
            f"AutoAttack asks about an image {float(distance[farthest]):g} from the nearest, sample"
            f" {int(self.addresses.samples[index[farthest]])}: outside the ball {self.threat}"
        )
        return index

    def one_by_one(self, perturb: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """The same for images that are given one by one, so that all rows are that image's."""
        if not self.by_sample:
            return perturb

        def each(images: Tensor, labels: Tensor) -> Tensor:
            found = []
            for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
                self.alone = int(self.whose(image))
                try:
                    found.append(perturb(image, label))
                finally:
                    self.alone = None
            return torch.cat(found)

        return each

    def _noise(self, samples: Tensor) -> RowNoise:
        """Fresh noise for each call: its number is the draw's."""
        draw = attack_draw(self.addresses.member, 0, self.calls >> 16, self.calls & 0xFFFF)
        self.calls += 1
        return self.addresses.noise.redraw(draw, keep=self.addresses.known).on(samples)

    def _check_finite(self, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            self.error = GradientError(f"the gradient {NOT_FINITE}")
            raise self.error


class _Logger(logging.Logger):
    """What the library logs; no handler of the program hears it. Its warnings that say that the
    attack is worth nothing here are errors, the others are warnings."""

    def __init__(self, verbose: bool) -> None:
        super().__init__("pyautoattack", logging.DEBUG)
        self.verbose = verbose

    def handle(self, record: logging.LogRecord) -> None:
        said = record.getMessage().split(" See ")[0].strip()
        if self.verbose:
            print(said)
        if record.levelno < logging.WARNING:
            return
        if "zero gradient" in said:
            raise GradientError(f"AutoAttack: {said.split('!')[0]}; {ADVICE}")
        if "randomized defense" in said:
            raise InputError(
                "AutoAttack: asked twice about the same images the defence answers differently:"
                " what does it draw outside its noise (dropout, a generator)?"
            )
        if "probability distribution" in said:
            raise InputError(
                "AutoAttack: the classifier answers probabilities: its losses need logits"
            )
        warnings.warn(f"AutoAttack: {said}", stacklevel=2)


@contextmanager
def _undisturbed(verbose: bool) -> Iterator[None]:
    """The library seeds the global generators, prints, and its check for dynamic defences ends
    tracing (debuggers, coverage): what it finds is put back, whatever happens."""
    tracer = sys.gettrace()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    quiet = nullcontext() if verbose else redirect_stdout(io.StringIO())
    with torch.random.fork_rng(devices), quiet:
        try:
            yield
        finally:
            sys.settrace(tracer)


@contextmanager
def _one_line(model: _Model) -> Iterator[None]:
    """What the library raises, as an InputError; what the defence raises stays as it is."""
    try:
        yield
    except Exception as error:
        memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, InputError) or error is model.error or memory:
            raise
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"AutoAttack stopped with {type(error).__name__}: {said}") from error


def _distances(rows: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """(R, B) distances of rows (R, C, H, W) from images (B, C, H, W)."""
    found: Tensor = torch.cdist(
        rows.flatten(1),
        images.flatten(1),
        p=torch.inf if norm == "linf" else 2.0,
        compute_mode="donot_use_mm_for_euclid_dist",  # a product loses what is small
    )
    return found


def _reach(images: Tensor, threat: Threat) -> float:
    """How far a row may be from its image: epsilon, and what rounding adds in each pixel."""
    pixels = images[0].numel()
    return threat.epsilon + ROUNDING * (1 if threat.norm == "linf" else pixels**0.5)


def _inside(moved: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """(B, 1, 1, 1) whether each moved image is in the ball around its own, and a picture."""
    order = torch.inf if threat.norm == "linf" else 2
    size: Tensor = torch.linalg.vector_norm(moved - images, order, dim=(1, 2, 3), keepdim=True)
    pixels = ((moved >= 0) & (moved <= 1)).flatten(1).all(1)[:, None, None, None]
    return (size <= threat.epsilon) & pixels


def _check_apart(images: Tensor, samples: Tensor, threat: Threat) -> None:
    """InputError where the balls of two images meet: rows there could be either's."""
    distances = _distances(images, images, threat.norm)
    distances.fill_diagonal_(torch.inf)
    first, second = divmod(int(distances.argmin()), len(images))
    apart = float(distances[first, second])
    if apart <= 2 * _reach(images, threat):
        what = (
            "are the same image"
            if apart == 0
            else f"are {NAMES[threat.norm]} {apart:g} apart, and their balls {threat} meet"
        )
        raise InputError(
            f"samples {int(samples[first])} and {int(samples[second])} {what}: AutoAttack does not"
            " say which of them it asks about, and the noise hangs on it: put them into different"
            " batches (--data.batch_size), or take AutoEOT"
        )
