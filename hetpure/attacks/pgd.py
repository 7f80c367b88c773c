"""PGD with expectation over transformation (Madry et al. 2018; Athalye et al. 2018)."""

from dataclasses import dataclass, replace
from math import isfinite

from torch import Tensor

from hetpure.attacks.gradient import BallAttack, Run
from hetpure.errors import FieldError
from hetpure.geometry import direction, project, uniform_in_ball
from hetpure.numbers import Number

FULL_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class PGD(BallAttack):
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
            raise FieldError(self, "step_size", f"must be > 0, got {self.step_size}")

    @property
    def name(self) -> str:
        return f"pgd_{self.norm}"

    def describe(self) -> str:
        loss = "" if self.loss == "cross_entropy" else f" {self.loss}"
        start = "" if self.random_start else ", no random start"
        steps = f"{self.steps} steps of {self.step_size}"
        return f"{self.title}, PGD{loss} {steps}, {self.budget()}{start}"

    def weaker_than_full(self) -> list[str]:
        weaknesses = super().weaker_than_full()
        if self.steps < FULL_STEPS:
            published = f"(HetPure's published attack: {FULL_STEPS})"
            weaknesses.append(f"{self.name}: {self.steps} iterations {published}")
        return weaknesses

    def at_radius(self, epsilon: float) -> "PGD | None":
        """In another ball, with steps as much longer."""
        if self.epsilon <= 0:
            return None
        step_size = Number(self.step_size * epsilon / self.epsilon)
        return replace(self, epsilon=Number(epsilon), step_size=step_size)

    def ascend(self, run: Run) -> list[Tensor]:
        images = run.target.images

        def step(adversarial: Tensor, gradient: Tensor) -> Tensor:
            along = gradient.sign() if self.norm == "linf" else direction(gradient)
            return project(adversarial + self.step_size * along, images, self.epsilon, self.norm)

        return self.climb(run, self.start(run), step, lambda adversarial: adversarial)

    def start(self, run: Run) -> Tensor:
        """The images (B, C, H, W) that a run begins with."""
        target = run.target
        if not self.random_start:
            return target.images
        noise = target.addresses.own_noise(run.number)
        return uniform_in_ball(noise, target.images, self.epsilon, self.norm)
