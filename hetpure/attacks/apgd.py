"""Auto-PGD (Croce & Hein 2020, Algorithm 1) with expectation over transformation."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hetpure.attacks.attack import Cost
from hetpure.attacks.gradient import Ascent, BallAttack, Best
from hetpure.defense import Defense
from hetpure.geometry import direction, project, uniform_in_ball
from hetpure.noise import Group

FULL_STEPS = 100
ALPHA = 0.75  # share of the new step; the rest is momentum
RHO = 0.75  # share of the steps between two checkpoints that should raise the loss
SHORT = {"cross_entropy": "ce", "dlr": "dlr", "margin": "margin"}


@dataclass(frozen=True, kw_only=True)
class APGD(BallAttack):
    """Ascends the expected loss with momentum, in steps that begin at twice the radius and are
    halved, image by image, where they no longer help. Its candidates are the best iterate of each
    run.

    `steps` steps visit `steps` + 1 iterates. Each is asked once: the gradient, the loss that rules
    the step size (of a randomised defence the mean over its draws) and the check whether the answer
    is wrong are of one forward pass.

    The published code scales the random start up to the border of the ball; here it is uniform in
    the ball, of which nearly all lies at the border in as many dimensions as an image has.
    """

    steps: int = FULL_STEPS
    eot_samples: int = 20

    @property
    def name(self) -> str:
        return f"apgd_{SHORT[self.loss]}_{self.norm}" + ("_targeted" if self.targets else "")

    def weaker_than_full(self) -> list[str]:
        return super().weaker_than_full() + self.below("steps", FULL_STEPS, "AutoAttack")

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return self._cost(defense, known, iterates=self.steps + 1, candidates=1)

    def ascend(self, run: Ascent) -> list[Tensor]:
        """Algorithm 1 in the paper's letters; the best adversarial images. `top` is x_max: it goes
        by the loss alone, also where answers are certain."""
        images, labels = run.target.images, run.target.labels
        noise = run.target.addresses.own_noise(run.number)
        x = uniform_in_ball(noise, images, self.epsilon, self.norm)
        best, top = Best(images), Best(images)
        w = checkpoints(self.steps)
        since = {after: before for before, after in pairwise(w)}
        eta = images.new_full((len(images), 1, 1, 1), 2 * self.epsilon)
        halved = torch.zeros_like(labels, dtype=torch.bool)
        f: list[Tensor] = []
        f_max: list[Tensor] = []
        previous, top_gradient = x, torch.zeros_like(x)
        for k in range(self.steps + 1):
            answer = self.ask(run, x, k)
            gradient = answer.gradient
            best.consider(x, answer.loss, self.wrong(run, x, answer, k))
            better = top.consider(x, answer.loss, torch.zeros_like(labels))
            top_gradient = torch.where(better[:, None, None, None], gradient, top_gradient)
            f.append(answer.loss)
            f_max.append(answer.loss if k == 0 else torch.maximum(f_max[-1], answer.loss))
            if k == self.steps:
                break
            if k in since:
                j = since[k]
                halved = condition_1(torch.stack(f[j:])) | condition_2(halved, f_max[j], f_max[k])
                where = halved[:, None, None, None]
                eta = torch.where(where, eta / 2, eta)
                x = torch.where(where, top.images, x)
                gradient = torch.where(where, top_gradient, gradient)
            alpha = ALPHA if k else 1.0
            along = gradient.sign() if self.norm == "linf" else direction(gradient)
            z = project(x + eta * along, images, self.epsilon, self.norm)
            moved = x + alpha * (z - x) + (1 - alpha) * (x - previous)
            previous, x = x, project(moved, images, self.epsilon, self.norm)
        return [best.images]


def checkpoints(steps: int) -> list[int]:
    """The first after 0.22 N steps, each interval 0.03 N shorter than the one before it, none
    shorter than 0.06 N. With N = 100 these are the paper's w_j. For other N the three numbers are
    rounded down as in the published code, not up as in the paper: of 20 steps the first checkpoint
    is the 4th in place of the 5th, and the attack is stronger
    (docs/experiments/attacks.md)."""
    interval, shorter, shortest = (max(hundredths * steps // 100, 1) for hundredths in (22, 3, 6))
    w = [0]
    while w[-1] + interval <= steps:
        w.append(w[-1] + interval)
        interval = max(interval - shorter, shortest)
    return w


def condition_1(f: Tensor) -> Tensor:
    """Too few of the steps since the last checkpoint raised the loss, given the losses of the
    iterates (1 + steps, B) from that checkpoint to this one."""
    return (f[1:] > f[:-1]).sum(0) < RHO * (len(f) - 1)


def condition_2(halved: Tensor, f_max_then: Tensor, f_max: Tensor) -> Tensor:
    """The step size was not halved at the last checkpoint, and the best loss has not grown since;
    all (B,)."""
    return ~halved & (f_max_then == f_max)
