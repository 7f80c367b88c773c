"""PGD with progressive gradients: those of a coarser purification, and then the defence's own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks.attack import Attack
from hetpure.attacks.gradient import Ascent
from hetpure.attacks.pgd import PGD
from hetpure.defense import Defense
from hetpure.errors import FieldError, check_at_least
from hetpure.expectation import Answer
from hetpure.noise import Group
from hetpure.purifiers import Purifier


@dataclass(frozen=True, kw_only=True)
class Progressive(PGD):
    """PGD whose first iterations follow a purifier with fewer steps, and the last `exact_steps` the
    defence itself.

    Lee & Kim (ICCV 2023) differentiate such a surrogate process throughout. Here it only finds the
    image at which the exact iterations begin.

    Only iterates of exact iterations can be the best one. The loss of a coarse iteration is that of
    another defence, often a larger one, and says nothing beside exact losses. To ask for these
    iterates once more exactly would cost what was saved. For the same reason the monitor hears of
    exact iterations alone. A plain classifier has no coarser schedule: there this is PGD, and every
    iteration is exact.

    Args:
        coarse: the purifier of the first iterations: of the defence's class, with fewer network
            calls.
        exact_steps: how many of the last iterations follow the defence itself.
    """

    coarse: Purifier
    exact_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "exact_steps")
        if self.exact_steps >= self.steps:
            fewer = f"must be < steps, {self.steps}, got {self.exact_steps}: else take PGD"
            raise FieldError(self, "exact_steps", fewer)

    def check(self, defense: Defense, samples: Tensor, known: tuple[Group, ...] = ()) -> None:
        super().check(defense, samples, known)
        self.followed(defense)

    def weaker_than_full(self) -> list[str]:
        coarse = f"{self.steps - self.exact_steps} of {self.steps} iterations"
        line = f"{self.name}: {coarse} follow a purifier with fewer steps"
        return [*super().weaker_than_full(), line]

    def stronger(self) -> Mapping[str, Attack]:
        """More steps are more of both kinds."""
        return {
            name: replace(attack, exact_steps=self.exact_steps * attack.steps // self.steps)
            for name, attack in super().stronger().items()
            if isinstance(attack, Progressive)
        }

    def substitute(self, defense: Defense) -> str | None:
        other = super().substitute(defense)
        if defense.purifier is None or self.execution(defense) is not None:
            return other
        return "coarse schedule" if other is None else f"coarse schedule and {other}"

    def followed(self, defense: Defense) -> Defense:
        """The defence with the coarse purifier in the place of its own. FieldError where that is of
        another class or takes as many network calls."""
        own, denoiser = defense.purifier, defense.denoiser
        if own is None or denoiser is None:
            return defense
        if type(self.coarse) is not type(own):
            kinds = f"is a {type(self.coarse).__name__}, and the defence has a {type(own).__name__}"
            raise FieldError(self, "coarse", f"{kinds}: give the same class with fewer steps")
        coarse = defense.copy()
        coarse.purifier, coarse.plan = self.coarse, self.coarse.plan(denoiser.schedule)
        if coarse.network_calls >= defense.network_calls:
            calls = f"takes {coarse.network_calls} network calls, the defence itself"
            raise FieldError(self, "coarse", f"{calls} {defense.network_calls}: give fewer steps")
        return coarse

    def ask(self, run: Ascent, adversarial: Tensor, iteration: int) -> Answer:
        if self._exact(run, iteration):
            return super().ask(run, adversarial, iteration)
        answer = self.gradient_at(self._coarse(run), adversarial, self.noises(run, iteration))
        return replace(answer, loss=torch.full_like(answer.loss, -torch.inf))

    def wrong(self, run: Ascent, adversarial: Tensor, answer: Answer, iteration: int) -> Tensor:
        if self._exact(run, iteration):
            return super().wrong(run, adversarial, answer, iteration)
        return torch.zeros_like(run.target.labels)

    def variance(
        self, run: Ascent, adversarial: Tensor, gradient: Tensor, iteration: int
    ) -> Tensor:
        if not self._exact(run, iteration):
            run = self._coarse(run)  # as the gradient that is corrected
        return super().variance(run, adversarial, gradient, iteration)

    def _exact(self, run: Ascent, iteration: int) -> bool:
        late = iteration >= self.steps - self.exact_steps
        return late or run.target.defense.purifier is None

    def _coarse(self, run: Ascent) -> Ascent:
        return replace(run, target=replace(run.target, defense=self.followed(run.target.defense)))
