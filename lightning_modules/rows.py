"""The rows of an evaluation, built: what is evaluated, what is attacked, and their gradient checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hetpure.acceleration import Acceleration, accelerate
from hetpure.attacks import Attack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.cost import (
    REPEATS,
    GradientCheckPlan,
    Stopwatch,
    allowance,
    gradient_phase,
    phases,
    plan_gradient_check,
    resolve,
)
from hetpure.evaluation.defense_check import Subject, check_defense_gradient
from hetpure.evaluation.protocol import Cell, Protocol
from hetpure.gradients import APPROXIMATIONS, Execution
from hetpure.memory import trim_heap
from hetpure.report.plan import RowPlan
from lightning_modules.defenses import DefenseConfig, differing


@dataclass
class Row:
    """One row of the table.

    `defense` is evaluated, `surrogate` attacked in its place where there is one; `plain` are both
    with the diffusion network as it is, not accelerated. `cells` are the attacks on it.
    """

    name: str
    defense: Defense
    surrogate: Defense | None
    plain: tuple[Defense, Defense | None]
    cells: list[Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._policy = self.attacked.execution.policy  # as configured, before it is resolved

    @property
    def attacked(self) -> Defense:
        """What the attack differentiates."""
        return self.surrogate or self.defense

    @property
    def defenses(self) -> list[Defense]:
        """All that it holds."""
        found = (self.defense, self.surrogate, *self.plain)
        return [defense for defense in found if defense is not None]

    @property
    def subjects(self) -> dict[str, Subject]:
        """What is checked, by the names that results give the gradient checks."""
        plain, plain_surrogate = self.plain
        found = {"gradient_check": self._subject(self.defense, plain)}
        if self.surrogate is not None and plain_surrogate is not None:
            subject = self._subject(self.surrogate, plain_surrogate)
            found["surrogate_gradient_check"] = replace(subject, defense=plain)
        return found

    def _subject(self, defense: Defense, plain: Defense) -> Subject:
        attacks = [cell.attack for cell in self.cells] if defense is self.attacked else []
        return Subject(defense, None if plain is defense else plain, attacks=attacks)

    def resolve(self, wish: Execution | None, images: Tensor, attack: Attack, budget: int) -> None:
        """Fixes how the row is computed, for blocks like `images` (B, C, H, W): what `wish` and
        the row's own policy leave open is chosen by memory."""
        own = self._policy
        wish = wish or Execution(own)
        if wish.policy == "auto":
            wish = replace(wish, policy=own)
        elif own not in ("auto", wish.policy):
            raise InputError(
                f"--model.execution says {wish.policy} for {self.name!r} and --model.defenses"
                f" gradient: {own}: take one of them away"
            )
        try:
            execution = resolve(Stopwatch(self.attacked, images), wish, attack, len(images), budget)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        # Where a surrogate is attacked, the defence itself is only asked for answers.
        answers = Execution("checkpoint", micro_batch=execution.micro_batch)
        for defense in (self.defense, self.plain[0]):
            defense.execution = execution if self.surrogate is None else answers
        for surrogate in (self.surrogate, self.plain[1]):
            if surrogate is not None:
                surrogate.execution = execution

    def gradient_check_plans(
        self, images: Tensor, attack: Attack, budget: int, repeats: int = REPEATS
    ) -> dict[str, GradientCheckPlan]:
        """How far its gradient checks go on a block like `images` (B, C, H, W), in `budget` bytes and
        the time that the main attack allows; timed here with so many repeats."""
        subjects, found = self.subjects, {}
        clocks = {
            name: Stopwatch(subject.attacked, images, repeats) for name, subject in subjects.items()
        }
        *_, attacked = clocks.values()
        seconds = allowance(attacked, attack) / len(clocks)
        for name, clock in clocks.items():
            found[name] = plan_gradient_check(subjects[name], clock, budget, seconds)
            trim_heap()
        return found

    def check_gradient(
        self, images: Tensor, samples: Tensor, attack: Attack, budget: int, **settings: Any
    ) -> dict[str, dict[str, Any]]:
        """Gradient checks by the names that results give them."""
        found = {}
        for name, plan in self.gradient_check_plans(images, attack, budget, repeats=1).items():
            gradient_check = check_defense_gradient(
                self.subjects[name],
                images,
                samples,
                extent=plan.extent,
                budget=budget,
                **settings,
            )
            found[name] = gradient_check.as_dict()
            trim_heap()
        return found

    def plan(
        self, images: Tensor, protocol: Protocol, count: int, attack: Attack, budget: int
    ) -> RowPlan:
        """What `count` images cost in blocks like `images` (B, C, H, W); gradient checks may take
        `budget` bytes."""
        answering = attacked = Stopwatch(self.defense, images)
        if self.surrogate is not None:
            attacked = Stopwatch(self.surrogate, images)
        used = self.attacked
        size = used.execution.micro_batch or 1
        forward, both = attacked.step(size)
        return RowPlan(
            phases=phases(answering, attacked, self.cells, protocol, count),
            execution=used.execution,
            call_seconds=(forward / size, both / size),
            footprint=used.footprint(images),
            steps=len(used.plan),
            gradients=gradient_phase(attacked, attack),
            gradient_checks=self.gradient_check_plans(images, attack, budget),
        )

    def inexact(self) -> list[str]:
        """How its attack's gradient is not that of the defence; its cosine is to follow."""
        found = []
        policy = self.attacked.execution.policy
        if self.surrogate is not None:
            found.append(
                f"the attack differentiates a surrogate of {self.surrogate.network_calls} network"
                f" calls, not the defence's {self.defense.network_calls}"
                f" ({differing(self.surrogate.purifier, self.defense.purifier)}); its gradient has"
            )
        if policy in APPROXIMATIONS:
            found.append(f"the attack's gradient is an approximation, {policy}, with")
        return found


def build_rows(
    configs: Mapping[str, DefenseConfig],
    classifier: Classifier,
    classifiers: Mapping[str, Classifier],
    denoisers: Mapping[str, Denoiser],
    acceleration: Acceleration,
) -> dict[str, Row]:
    """Every row by name; rows share the networks, accelerated ones too. `classifiers` are those
    that rows name for themselves."""
    fast = {key: accelerate(denoiser, acceleration) for key, denoiser in denoisers.items()}
    rows = {}
    for name, config in configs.items():
        key = config.denoiser
        if key is not None and key not in denoisers:
            raise InputError(
                f"--model.defenses.{name}.denoiser {key!r} is not among --model.denoisers"
                f" ({', '.join(denoisers)})"
            )
        own = classifier if config.classifier is None else classifiers[config.classifier]
        plain = config.build(own, None if key is None else denoisers[key])
        used = plain
        if key is not None and acceleration.active:
            used = config.build(own, fast[key])
        rows[name] = Row(name, *used, plain)
    return rows
