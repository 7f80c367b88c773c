"""PGD with expectation over transformation (Madry et al. 2018; Athalye et al. 2018)."""

from dataclasses import dataclass, replace

from torch import Tensor

from hetpure.attacks.gradient import Ascent, BallAttack
from hetpure.errors import check_positive
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
        check_positive(self, "step_size")

    def weaker_than_full(self) -> list[str]:
        steps = self.below("steps", FULL_STEPS, "HetPure's published attack")
        return super().weaker_than_full() + steps

    def at_radius(self, epsilon: float) -> "PGD":
        """In another ball, with steps as much longer."""
        step_size = Number(self.step_size * epsilon / self.epsilon)
        return replace(self, epsilon=Number(epsilon), step_size=step_size)

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def step(adversarial: Tensor, gradient: Tensor) -> Tensor:
            along = gradient.sign() if self.norm == "linf" else direction(gradient)
            return project(adversarial + self.step_size * along, images, self.epsilon, self.norm)

        return self.climb(run, self.start(run), step, lambda adversarial: adversarial)

    def start(self, run: Ascent) -> Tensor:
        """The images (B, C, H, W) that a run begins with."""
        target = run.target
        if not self.random_start:
            return target.images
        noise = target.addresses.own_noise(run.number)
        return uniform_in_ball(noise, target.images, self.epsilon, self.norm)
