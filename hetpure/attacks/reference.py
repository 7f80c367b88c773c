"""The attack that an audit holds every other attack against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hetpure.attacks.attack import Cost, Target, Threat, unknown_groups
from hetpure.attacks.gradient import Approximation, Ascent, MaskPolicy
from hetpure.attacks.losses import Loss
from hetpure.attacks.pgd import PGD
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.expectation import Answer
from hetpure.gradients import APPROXIMATIONS, Execution, GradientError
from hetpure.noise import Group, Noise
from hetpure.numbers import Number

STEPS, STEP, EOT_SAMPLES = 20, 1 / 4, 8  # a step is a share of the radius
FOLLOWED: tuple[Approximation, ...] = ("none", "bpda")  # in turn, where there is no gradient
NOBODY = -1  # a label that no answer has


@dataclass(frozen=True, kw_only=True)
class Reference(PGD):
    """PGD of a fixed strength, whatever the evaluation's own attack: 20 steps of a quarter of the
    radius up the margin, eight draws a gradient, once from the image and once from a random start.
    Its candidates are the best iterates.

    It follows the exact gradient, also where the evaluation has the defence differentiated
    otherwise; an image whose gradient is zero stays where it is. Where all are zero it follows
    BPDA's, and where these are zero too it asks as often without gradients.
    """

    mask: MaskPolicy = "recomputed"
    loss: Loss = "margin"

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

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """Beside the ascents the questions that find no gradient."""
        cost = super().cost(defense, known)
        looks = cost.draws * (len(FOLLOWED) - 1)
        return replace(cost, gradients=cost.gradients + looks, candidates=self.restarts)

    def __call__(self, target: Target) -> Tensor:
        for approximation in FOLLOWED if target.defense.purifier is not None else FOLLOWED[:1]:
            try:
                followed = replace(self, approximation=approximation)
                return super(Reference, followed).__call__(target)
            except GradientError:
                continue
        drawn = bool(unknown_groups(target.defense, target.addresses.known))
        asked = self.restarts * self.steps * (self.eot_samples if drawn else 1)
        steps = asked // 2 if drawn else asked  # with noise it asks twice for each
        return Square(epsilon=self.epsilon, norm=self.norm, steps=steps, eot_samples=1)(target)

    def ascend(self, run: Ascent) -> list[Tensor]:
        return super().ascend(run)[1:]  # the best one

    def ask(self, run: Ascent, adversarial: Tensor, iteration: int) -> Answer:
        answer = super().ask(run, adversarial, iteration)
        if run.number == iteration == 0 and not answer.gradient.any():
            raise GradientError("the gradient is zero for all images")
        return answer

    def gradient_at(self, run: Ascent, adversarial: Tensor, noises: Sequence[Noise]) -> Answer:
        labels = torch.full_like(run.target.labels, NOBODY)  # whose gradients may all be zero
        target = replace(run.target, labels=labels)
        return super().gradient_at(replace(run, target=target), adversarial, noises)

    def start(self, run: Ascent) -> Tensor:
        return run.target.images if run.number == 0 else super().start(run)

    def execution(self, defense: Defense) -> Execution | None:
        used = defense.execution
        if self.approximation == "none" and used.policy in APPROXIMATIONS:
            return Execution("checkpoint", micro_batch=used.micro_batch)
        return super().execution(defense)
