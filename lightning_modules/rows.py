"""The rows of an evaluation, built: what is evaluated, what is attacked, and their certificates."""

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
from hetpure.evaluation.certificate import certify_defense
from hetpure.evaluation.cost import Phase, Stopwatch, certificate_phase, phases, resolve
from hetpure.evaluation.protocol import Cell, Protocol
from hetpure.gradients import APPROXIMATIONS, Execution
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

    def _attacks(self, defense: Defense) -> list[Attack]:
        """Those that differentiate this one of its defences."""
        return [cell.attack for cell in self.cells] if defense is self.attacked else []

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

    def certify(
        self, images: Tensor, samples: Tensor, **settings: Any
    ) -> dict[str, dict[str, Any]]:
        """Certificates by the names that results give them."""
        plain, plain_surrogate = self.plain
        attacks = self._attacks(self.defense)
        own = certify_defense(
            self.defense, images, samples, plain=plain, attacks=attacks, **settings
        )
        found = {"certificate": own.as_dict()}
        if self.surrogate is not None:
            attacks = self._attacks(self.surrogate)
            settings |= {"plain": plain_surrogate, "defense": plain, "attacks": attacks}
            other = certify_defense(self.surrogate, images, samples, **settings)
            found["surrogate_certificate"] = other.as_dict()
        return found

    def plan(self, images: Tensor, protocol: Protocol, count: int) -> RowPlan:
        """What `count` images cost in blocks like `images` (B, C, H, W)."""
        answering = attacked = Stopwatch(self.defense, images)
        if self.surrogate is not None:
            attacked = Stopwatch(self.surrogate, images)
        used = self.attacked
        accelerated = self.plain[0] is not self.defense
        attacks = self._attacks(self.defense)
        own = certificate_phase(answering, answering, self.plain[0], accelerated, attacks)
        if self.surrogate is not None and self.plain[1] is not None:
            attacks = self._attacks(self.surrogate)
            other = certificate_phase(answering, attacked, self.plain[1], accelerated, attacks)
            own = Phase(
                own.name,
                own.network_calls + other.network_calls,
                own.differentiated + other.differentiated,
                own.seconds + other.seconds,
            )
        size = used.execution.micro_batch or 1
        forward, both = attacked.step(size)
        return RowPlan(
            phases=phases(answering, attacked, self.cells, protocol, count),
            execution=used.execution,
            call_seconds=(forward / size, both / size),
            footprint=used.footprint(images),
            steps=len(used.plan),
            certificate=own,
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
