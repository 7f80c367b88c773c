"""The rows of an evaluation, built: what is evaluated, what is attacked, and their certificates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hetpure.acceleration import Acceleration, accelerate
from hetpure.attacks import Attack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.certificate import certify_defense
from hetpure.evaluation.cost import Stopwatch, certificate_phase, phases, resolve
from hetpure.evaluation.protocol import Protocol
from hetpure.gradients import APPROXIMATIONS, Execution
from hetpure.report.plan import RowPlan
from lightning_modules.defenses import DefenseConfig, differing


@dataclass
class Row:
    """One row of the table.

    `defense` is evaluated, `surrogate` attacked in its place where there is one; `plain` are both
    with the diffusion network as it is, not accelerated.
    """

    name: str
    defense: Defense
    surrogate: Defense | None
    plain: tuple[Defense, Defense | None]

    @property
    def attacked(self) -> Defense:
        """What the attack differentiates."""
        return self.surrogate or self.defense

    @property
    def defenses(self) -> list[Defense]:
        """All that it holds."""
        found = (self.defense, self.surrogate, *self.plain)
        return [defense for defense in found if defense is not None]

    def resolve(self, wish: Execution | None, images: Tensor, attack: Attack, budget: int) -> None:
        """Fixes how the row is computed, for blocks like `images` (B, C, H, W): what `wish` and
        the row's own policy leave open is chosen by memory."""
        stopwatch = Stopwatch(self.attacked, images)
        wish = wish or self.attacked.execution
        execution = resolve(stopwatch, wish, attack, len(images), budget)
        for defense in self.defenses:
            defense.execution = execution
        if self.surrogate is not None:  # then the defence itself is only asked for answers
            for defense in (self.defense, self.plain[0]):
                defense.execution = Execution("checkpoint", micro_batch=execution.micro_batch)

    def certify(
        self, images: Tensor, samples: Tensor, **settings: Any
    ) -> dict[str, dict[str, Any]]:
        """Certificates by the names that results give them."""
        plain, plain_surrogate = self.plain
        own = certify_defense(self.defense, images, samples, plain=plain, **settings)
        found = {"certificate": own.as_dict()}
        if self.surrogate is not None:
            found["surrogate_certificate"] = certify_defense(
                self.surrogate, images, samples, plain=plain_surrogate, defense=plain, **settings
            ).as_dict()
        return found

    def plan(
        self, images: Tensor, attack: Attack, protocol: Protocol, count: int, budget: int
    ) -> RowPlan:
        """What `count` images cost in blocks like `images` (B, C, H, W); `budget` is in bytes."""
        answering = attacked = Stopwatch(self.defense, images)
        if self.surrogate is not None:
            attacked = Stopwatch(self.surrogate, images)
        used = self.attacked
        size = used.execution.micro_batch or 1
        forward, both = attacked.step(size)
        return RowPlan(
            phases=phases(answering, attacked, attack, protocol, count),
            execution=used.execution,
            call_seconds=(forward / size, both / size),
            footprint=used.footprint(images),
            steps=len(used.plan),
            certificate=certificate_phase(self.plain[0], images, budget),
        )

    def weaker_than_full(self) -> list[str]:
        """Where its attack's gradient is not that of the defence."""
        found = []
        policy = self.attacked.execution.policy
        if self.surrogate is not None:
            found.append(
                f"{self.name}: the attack differentiates a surrogate of"
                f" {self.surrogate.network_calls} network calls, not the defence's"
                f" {self.defense.network_calls}"
                f" ({differing(self.surrogate.purifier, self.defense.purifier)})"
            )
        if policy in APPROXIMATIONS:
            found.append(f"{self.name}: the attack's gradient is an approximation, {policy}")
        return found


def build_rows(
    configs: Mapping[str, DefenseConfig],
    classifier: Classifier,
    denoisers: Mapping[str, Denoiser],
    acceleration: Acceleration,
) -> dict[str, Row]:
    """Every row by name; rows share the networks, accelerated ones too."""
    fast = {key: accelerate(denoiser, acceleration) for key, denoiser in denoisers.items()}
    rows = {}
    for name, config in configs.items():
        key = config.denoiser
        if key is not None and key not in denoisers:
            raise InputError(
                f"--model.defenses.{name}.denoiser {key!r} is not among --model.denoisers"
                f" ({', '.join(denoisers)})"
            )
        plain = config.build(classifier, None if key is None else denoisers[key])
        used = plain
        if key is not None and acceleration.active:
            used = config.build(classifier, fast[key])
        rows[name] = Row(name, *used, plain)
    return rows
