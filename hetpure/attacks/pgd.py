"""PGD with expectation over transformation (Madry et al. 2018; Athalye et al. 2018), and what may
take its gradient's place: momentum and variance tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks.attack import Cost
from hetpure.attacks.gradient import Ascent, BallAttack, State
from hetpure.defense import Defense
from hetpure.errors import check_at_least, check_at_most, check_positive
from hetpure.geometry import Norm, direction, project, uniform_in_ball
from hetpure.noise import MOST_REPEATS, BatchNoise, Group, Purpose
from hetpure.numbers import Number

FULL_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class PGD(BallAttack):
    """Ascends the expected loss in steps of one size, with the gradient of the whole defence on its
    own schedule. Its candidates are the last iterate of each run and the best.

    Args:
        step_size: of the sign (linf) or of the normalised gradient (l2), pixel units.
        random_start: start uniformly inside the ball, else at the image.
        momentum: mu, what a step keeps of the direction before it (MI-FGSM, Dong et al. 2018); the
            paper: 1. With 0 and without neighbours a step goes along the gradient alone.
        neighbours: N, points around each iterate whose gradients correct the next one (VMI-FGSM,
            Wang & He 2021); the paper: 20. They multiply the attack's cost by nearly 1 + N.
        neighbourhood: beta, how far away neighbours are at most, in radii of the ball.
    """

    step_size: Number = Number("2/255")  # noqa: RUF009 (immutable)
    random_start: bool = True
    momentum: Number = Number(0)  # noqa: RUF009 (immutable)
    neighbours: int = 0
    neighbourhood: Number = Number("1.5")  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "step_size", "neighbourhood")
        check_at_least(self, 0, "momentum", "neighbours")
        check_at_most(self, MOST_REPEATS, "neighbours")

    def weaker_than_full(self) -> list[str]:
        steps = self.below("steps", FULL_STEPS, "HetPure's published attack")
        return super().weaker_than_full() + steps

    def at_radius(self, epsilon: float) -> "PGD":
        """In another ball, with steps as much longer."""
        step_size = Number(self.step_size * epsilon / self.epsilon)
        return replace(self, epsilon=Number(epsilon), step_size=step_size)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """A gradient a step, and those of its neighbours at all steps but the last of each run."""
        cost = super().cost(defense, known)
        around = cost.gradients // self.steps * (self.steps - 1) * self.neighbours
        return replace(cost, gradients=cost.gradients + around)

    def ascend(self, run: Ascent) -> list[Tensor]:
        images = run.target.images

        def step(adversarial: Tensor, gradient: Tensor) -> Tensor:
            along = steepest(gradient, self.norm)
            return project(adversarial + self.step_size * along, images, self.epsilon, self.norm)

        return self.climb(run, self.start(run), step, lambda adversarial: adversarial)

    def start(self, run: Ascent) -> Tensor:
        """The images (B, C, H, W) that a run begins with."""
        target = run.target
        if not self.random_start:
            return target.images
        noise = target.addresses.own_noise(run.number)
        return uniform_in_ball(noise, target.images, self.epsilon, self.norm)

    def climb(
        self,
        run: Ascent,
        start: State,
        step: Callable[[State, Tensor], State],
        images_of: Callable[[State], Tensor],
    ) -> list[Tensor]:
        """With momentum or neighbours a step goes along the sum of Wang & He's Algorithm 1 in place
        of the gradient; without neighbours that is Dong et al.'s Algorithm 1."""
        if not self.momentum and not self.neighbours:
            return super().climb(run, start, step, images_of)

        def along(
            state: tuple[State, Tensor, Tensor, int], gradient: Tensor
        ) -> tuple[State, Tensor, Tensor, int]:
            inner, total, variance, iteration = state
            total = accumulated(total, gradient + variance, self.momentum)
            if self.neighbours and iteration + 1 < self.steps:
                variance = self.variance(run, images_of(inner), gradient, iteration)
            return step(inner, total), total, variance, iteration + 1

        nothing = torch.zeros_like(run.target.images)
        first = (start, nothing, nothing, 0)
        return super().climb(run, first, along, lambda state: images_of(state[0]))

    def variance(
        self, run: Ascent, adversarial: Tensor, gradient: Tensor, iteration: int
    ) -> Tensor:
        """V(x) (B, C, H, W) of Wang & He's Algorithm 1: the mean gradient of the neighbours of an
        iterate, less its own. All are asked on the same draws, so that only the images differ."""
        noises = self.noises(run, iteration)
        own = run.target.addresses.own_noise(run.number, iteration)
        total = torch.zeros_like(gradient)
        for number in range(self.neighbours):
            near = neighbour(own, adversarial, self.neighbourhood * self.epsilon, self.norm, number)
            total += self.gradient_at(run, near, noises).gradient
        return total / self.neighbours - gradient


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step (B, C, H, W) of norm 1 along which a gradient rises most; zero stays zero."""
    return gradient.sign() if norm == "linf" else direction(gradient)


def accumulated(total: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """mu g + gradient / |gradient|_1 for the sum g so far (Dong et al. 2018, Algorithm 1), all
    (B, C, H, W); a gradient of zero adds nothing."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
    return momentum * total + scaled / scaled.abs().sum((1, 2, 3), keepdim=True).clamp(min=1)


def neighbour(noise: BatchNoise, images: Tensor, radius: float, norm: Norm, number: int) -> Tensor:
    """A point near each image (B, C, H, W), cut to [0, 1], where the defence is defined: uniform in
    the linf ball, or on the border of the l2 ball, where nearly all of it lies. `number` tells the
    neighbours of an iterate apart."""
    if norm == "linf":
        offset = 2 * noise.uniform(Purpose.PERTURBATION, images, step=number) - 1
    else:
        offset = direction(noise.normal(Purpose.PERTURBATION, images, step=number))
    return (images + radius * offset).clamp(0, 1)
