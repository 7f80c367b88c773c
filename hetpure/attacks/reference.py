"""The attack that an audit holds every other attack against."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from hetpure.attacks.attack import Target, Threat
from hetpure.attacks.gradient import Ascent, MaskPolicy
from hetpure.attacks.pgd import PGD
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.gradients import APPROXIMATIONS, Execution, GradientError
from hetpure.numbers import Number

STEPS, STEP, EOT_SAMPLES = 20, 1 / 4, 8  # a step is a share of the radius


@dataclass(frozen=True, kw_only=True)
class Reference(PGD):
    """PGD of a fixed strength, whatever the evaluation's own attack: 20 steps of a quarter of the
    radius, eight draws a gradient, once from the image and once from a random start.

    It follows the exact gradient, also where the evaluation has the defence differentiated
    otherwise. Where the defence has none it follows BPDA's, and where that is none either it asks
    as often without gradients.
    """

    mask: MaskPolicy = "recomputed"

    @classmethod
    def of(cls, threat: Threat) -> Self:
        """The reference attack in this ball, whose radius is above 0."""
        step_size = Number(threat.epsilon * STEP)
        return cls(
            epsilon=Number(threat.epsilon),
            norm=threat.norm,
            steps=STEPS,
            step_size=step_size,
            eot_samples=EOT_SAMPLES,
            restarts=2,
        )

    def __call__(self, target: Target) -> Tensor:
        try:
            return super().__call__(target)
        except GradientError:
            if self.approximation == "none" and target.defense.purifier is not None:
                return replace(self, approximation="bpda")(target)
        queries = self.restarts * self.steps * self.eot_samples
        return Square(epsilon=self.epsilon, norm=self.norm, steps=queries, eot_samples=1)(target)

    def start(self, run: Ascent) -> Tensor:
        return run.target.images if run.number == 0 else super().start(run)

    def execution(self, defense: Defense) -> Execution | None:
        used = defense.execution
        if self.approximation == "none" and used.policy in APPROXIMATIONS:
            return Execution("checkpoint", micro_batch=used.micro_batch)
        return super().execution(defense)
