"""PGD with expectation over transformation (Madry et al. 2018; Athalye et al. 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.attack import Attack
from hetpure.defense import Defense
from hetpure.errors import InputError, check_choice
from hetpure.expectation import Query, expected_gradient
from hetpure.noise import Noise, Purpose, attack_draw
from hetpure.numbers import Number

Norm = Literal["linf", "l2"]
FULL_STEPS, FULL_EOT = 200, 20


@dataclass(frozen=True)
class PGD(Attack):
    """Ascends the mean cross-entropy over fresh noise draws, with the gradient of the whole
    defence on its own schedule. The mask is that of each iterate (no gradient through it).

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        norm: of the ball.
        steps: iterations.
        step_size: of the sign (linf) or of the normalised gradient (l2), pixel units.
        eot_samples: noise draws averaged in each gradient.
        random_start: start uniformly inside the ball, else at the image.
        restarts: independent runs; each gives one candidate.
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    norm: Norm = "linf"
    steps: int = 20
    step_size: Number = Number("2/255")  # noqa: RUF009 (immutable)
    eot_samples: int = 10
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("epsilon", "be >= 0"), ("step_size", "be > 0")):
            value = getattr(self, name)
            if not isfinite(value) or value < 0 or (value == 0 and name == "step_size"):
                raise InputError(f"--model.attack.{name} must {allowed}, got {value}")
        check_choice("--model.attack.norm", self.norm, Norm)
        for name in ("steps", "eot_samples", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"--model.attack.{name} must be >= 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        return f"pgd_{self.norm}"

    def describe(self) -> str:
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        budget = f"PGD {self.steps} steps of {self.step_size}, EOT {self.eot_samples}"
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        start = "" if self.random_start else ", no random start"
        return f"{norm} {self.epsilon}, {budget}{restarts}{start}"

    def weaker_than_full(self) -> list[str]:
        found = ["one kind of attack; mask of each iterate only, without gradient through it"]
        for name, value, full in (
            ("iterations", self.steps, FULL_STEPS),
            ("EOT draws", self.eot_samples, FULL_EOT),
        ):
            if value < full:
                found.append(f"{value} {name} (HetPure's published attack: {full})")
        return found

    @property
    def candidates(self) -> int:
        return self.restarts

    def purifications(self, defense: Defense) -> int:
        return self.restarts * self.steps * self.draws(defense)

    def draws(self, defense: Defense) -> int:
        return self.eot_samples if defense.stochastic else 1

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        samples: Tensor,
        noise: Noise,
        *,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> Tensor:
        eot = self.draws(defense)
        candidates = []

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            # Summed over images, so that no image's gradient depends on the batch; in float64,
            # where 1 - p of a sure classifier is not yet 0.
            return F.cross_entropy(logits.double(), labels[index], reduction="sum") / eot

        for restart in range(self.restarts):
            adversarial = images
            if self.random_start:
                adversarial = self._start(images, samples, noise, restart)
            for iteration in range(self.steps):
                draws = [attack_draw(0, restart, iteration, k) for k in range(eot)]
                noises = [noise.redraw(draw) for draw in draws]
                query = Query(adversarial, samples, defense.mask(adversarial, samples), noises)
                gradient = expected_gradient(defense, query, loss, progress)
                adversarial = self._step(adversarial, gradient, images)
            candidates.append(adversarial)
        return torch.stack(candidates)

    def _step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        if self.norm == "linf":
            moved = adversarial + self.step_size * gradient.sign()
        else:
            moved = adversarial + self.step_size * _direction(gradient)
        return project(moved, images, self.epsilon, self.norm)

    def _start(self, images: Tensor, samples: Tensor, noise: Noise, restart: int) -> Tensor:
        rows = noise.redraw(attack_draw(0, restart, 0, 0)).on(samples)
        if self.norm == "linf":
            offset = 2 * rows.uniform(Purpose.START, images) - 1
        else:
            # Uniform in the ball: a uniform direction at radius u^(1/d).
            direction = rows.normal(Purpose.START, images)
            uniform = rows.uniform(Purpose.START, images[:, :1, :1, :1], step=1)
            offset = direction / _norms(direction) * uniform ** (1 / images[0].numel())
        return project(images + self.epsilon * offset, images, self.epsilon, self.norm)


def project(moved: Tensor, images: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest point of the ball around `images`, then of [0, 1]; the second keeps the first,
    since the images themselves are in [0, 1]."""
    offset = moved - images
    if norm == "linf":
        offset = offset.clamp(-epsilon, epsilon)
    else:
        offset = offset * (epsilon / _norms(offset)).clamp(max=1)
    return (images + offset).clamp(0, 1)


def _direction(gradient: Tensor) -> Tensor:
    """The gradient at L2 norm 1 an image, however small it is; zero stays zero."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
    return scaled / _norms(scaled)


def _norms(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) L2 norms, kept off zero."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return norms.clamp(min=1e-12)
