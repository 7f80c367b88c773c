"""PGD with expectation over transformation (Madry et al. 2018; Athalye et al. 2018)."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from hetpure.attacks.attack import Addresses, Monitor, unknown_groups
from hetpure.attacks.gradient import Best, GradientAttack
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.geometry import direction, project, uniform_in_ball
from hetpure.noise import Group, attack_draw
from hetpure.numbers import Number

FULL_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Ascends the expected loss in steps of one size, with the gradient of the whole defence on its
    own schedule. Its candidates are the last iterate of each run and the best.

    Args:
        step_size: of the sign (linf) or of the normalised gradient (l2), pixel units.
        random_start: start uniformly inside the ball, else at the image.
    """

    step_size: Number = Number("2/255")  # noqa: RUF009 (immutable)
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isfinite(self.step_size) or self.step_size <= 0:
            raise InputError(f"--model.attack.step_size must be > 0, got {self.step_size}")

    @property
    def name(self) -> str:
        return f"pgd_{self.norm}"

    def describe(self) -> str:
        loss = "" if self.loss == "cross_entropy" else f" {self.loss}"
        start = "" if self.random_start else ", no random start"
        steps = f"{self.steps} steps of {self.step_size}"
        return f"{self.title}, PGD{loss} {steps}, {self.budget()}{start}"

    def weaker_than_full(self) -> list[str]:
        found = super().weaker_than_full()
        if self.steps < FULL_STEPS:
            found.append(
                f"{self.name}: {self.steps} iterations (HetPure's published attack: {FULL_STEPS})"
            )
        return found

    def candidates(self, defense: Defense) -> int:
        return 2 * self.runs(defense) * len(self.variants(defense))

    def purifications(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        return (
            self.runs(defense)
            * self.steps
            * self.draws(defense, known)
            * len(self.variants(defense))
        )

    def attack_one(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        monitor: Monitor,
    ) -> Tensor:
        clean_mask = defense.mask(images, addresses.samples)
        certain = not unknown_groups(defense, addresses.known)
        candidates = []
        for run, losses in self.each_run(defense, images, labels, addresses, monitor):
            adversarial = self._start(images, addresses, run)
            best = Best(images, certain=certain)
            for iteration in range(self.steps):
                answer = self.ask(
                    defense,
                    adversarial,
                    labels,
                    clean_mask,
                    losses,
                    addresses,
                    run,
                    iteration,
                    monitor,
                )
                best.consider(adversarial, answer, labels)
                step = answer.gradient.sign() if self.norm == "linf" else direction(answer.gradient)
                adversarial = project(
                    adversarial + self.step_size * step, images, self.epsilon, self.norm
                )
            candidates += [adversarial, best.images]
        return torch.stack(candidates)

    def _start(self, images: Tensor, addresses: Addresses, run: int) -> Tensor:
        if not self.random_start:
            return images
        draw = attack_draw(addresses.member, run, 0, 0)
        rows = addresses.noise.redraw(draw).on(addresses.samples)
        return uniform_in_ball(rows, images, self.epsilon, self.norm)
