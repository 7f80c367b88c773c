"""Square Attack (Andriushchenko et al. 2020): random search by the answers alone, no gradient."""

from dataclasses import dataclass, replace
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.attack import Cost, InBall, Target, unknown_groups
from hetpure.attacks.losses import criterion
from hetpure.defense import Defense
from hetpure.errors import check_at_least, check_at_most, check_fraction
from hetpure.expectation import expected_loss
from hetpure.geometry import direction, project
from hetpure.noise import MOST_EOT_SAMPLES, MOST_STEPS, BatchNoise, Group, Purpose

FULL_STEPS = 5000
TINY = 1e-12
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 steps


@dataclass(frozen=True, kw_only=True)
class Square(InBall):
    """Changes a square of the image at random, and keeps what raises the margin of the best wrong
    class. Its candidate is where it ends.

    An image whose answer is certain costs a query a step, and none once it is wrong. Of a
    randomised defence, each step asks for the image so far and for the proposal on the same fresh
    draws: it costs twice `eot_samples` queries.

    The window is each image's own and lies anywhere inside it (Algorithms 2 and 3); the published
    code gives a batch one window, and leaves out its last place.

    Args:
        steps: proposals.
        p_init: share of the pixels that the first squares change.
        eot_samples: noise draws on which an image and a proposal are compared.
    """

    steps: int = FULL_STEPS
    p_init: float = 0.8
    eot_samples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "steps", "eot_samples")
        check_at_most(self, MOST_STEPS, "steps")
        check_at_most(self, MOST_EOT_SAMPLES, "eot_samples")
        check_fraction(self, "p_init")

    def weaker_than_full(self) -> list[str]:
        return self.below("steps", FULL_STEPS, "AutoAttack")

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """Fewer queries where an answer that is certain is soon wrong."""
        if not unknown_groups(defense, known):
            return Cost(queries=1 + self.steps)
        return Cost(queries=2 * self.steps * self.eot_samples, draws=self.eot_samples)

    def __call__(self, target: Target) -> Tensor:
        images, certain = target.images, target.certain
        best = self._start(images, target.addresses.own_noise(0))
        left = torch.arange(len(images), device=images.device)  # those still searched for
        if certain:
            loss, wrong = self._ask(replace(target, images=best), 0)
            left = left[~wrong]
        else:
            loss = images.new_zeros(len(images), dtype=torch.float64)
        for step in range(1, self.steps + 1):
            if not len(left):
                break
            part, x = target.take(left), best[left]
            proposal = self._propose(x, part.images, step, part.addresses.own_noise(0, step))
            if certain:
                before = loss[left]
                after, wrong = self._ask(replace(part, images=proposal), step)
            else:
                # A loss kept from the draws on which it was taken would be the luckiest so far: in
                # time it turns every better proposal away. The same draws for both leave only the
                # difference between the images.
                pair = replace(target.take(left.repeat(2)), images=torch.cat([x, proposal]))
                both, _ = self._ask(pair, step)
                before, after = both.chunk(2)
                wrong = torch.zeros_like(part.labels, dtype=torch.bool)
            better = (after > before) | wrong
            best[left] = torch.where(better[:, None, None, None], proposal, x)
            loss[left] = torch.where(better, after, before)
            left = left[~wrong]
            target.monitor.iteration(step, loss=float(loss.mean()))
        return best[None]

    def _ask(self, target: Target, step: int) -> tuple[Tensor, Tensor]:
        """The expected margins (B,) of the target's images, and whether their answers are wrong on
        every draw (B,)."""
        draws = 1 if target.certain else self.eot_samples
        logits = target.answers(target.addresses.draws(0, step, draws))
        loss = expected_loss(logits, criterion("margin", target.labels), "gradients")
        return loss, (logits.argmax(-1) != target.labels).all(0)

    def _start(self, images: Tensor, noise: BatchNoise) -> Tensor:
        linf = self.norm == "linf"
        offset = stripes(noise, images) if linf else direction(tiles(noise, images))
        return project(images + self.epsilon * offset, images, self.epsilon, self.norm)

    def _propose(self, x: Tensor, images: Tensor, step: int, noise: BatchNoise) -> Tensor:
        share = share_of_pixels(self.p_init, step, self.steps)
        size = round(sqrt(share * images.shape[2] * images.shape[3]))
        propose = propose_linf if self.norm == "linf" else propose_l2
        return propose(x, images, self.epsilon, size, noise)


def share_of_pixels(p_init: float, step: int, steps: int) -> float:
    """The paper's p at step 1, 2, ..., `steps`: its halvings are given for 10,000 steps and
    stretched to those there are."""
    of_ten_thousand = (step - 1) * 10_000 // steps
    halvings = sum(of_ten_thousand > after for after in HALVED_AFTER)
    return p_init * 0.5**halvings


def stripes(noise: BatchNoise, images: Tensor) -> Tensor:
    """(B, C, H, W) vertical stripes of -1 or 1, one pixel wide, in each channel (Algorithm 2)."""
    return signs(noise, Purpose.START, images[:, :, :1]).expand_as(images)


def tiles(noise: BatchNoise, images: Tensor) -> Tensor:
    """(B, C, H, W) five by five tiles of the pattern eta, lying or standing, each of one sign in
    each channel (Algorithm 3); more where the sides are no multiples of five."""
    height, width = images.shape[2:]
    size = max(min(height, width) // 5, 1)
    down, across = height // size, width // size
    grid = images[:, :, :1, :1].expand(-1, -1, down, across)
    sign = _enlarged(signs(noise, Purpose.START, grid), size)
    lying = _enlarged(signs(noise, Purpose.START, grid[:, :1], step=1), size) > 0
    pattern = eta(size, images)
    tiled = sign * torch.where(lying, pattern.repeat(down, across), pattern.T.repeat(down, across))
    top, left = (height - down * size) // 2, (width - across * size) // 2
    bottom, right = height - down * size - top, width - across * size - left
    return F.pad(tiled, (left, right, top, bottom))


def propose_linf(x: Tensor, images: Tensor, epsilon: float, size: int, noise: BatchNoise) -> Tensor:
    """Algorithm 2: a square of x (B, C, H, W) goes to one side of the ball in each channel: a step
    of 2 epsilon, projected, ends there wherever it begins."""
    size = min(max(size, 1), *images.shape[2:])
    square = window(places(noise, images, size, step=0), size, images)
    side = signs(noise, Purpose.PERTURBATION, images[:, :, :1, :1], step=1)
    moved = project(images + epsilon * side, images, epsilon, "linf")
    return torch.where(square, moved, x)


def propose_l2(x: Tensor, images: Tensor, epsilon: float, size: int, noise: BatchNoise) -> Tensor:
    """Algorithm 3: what two windows of x (B, C, H, W) have moved, and what is left of the ball, is
    spent in the first, along what is there and a pattern eta; the second goes back to the image.
    The sum is then scaled up to the ball, as published."""
    size = max(size, 3)
    size = min(size + 1 - size % 2, *images.shape[2:])
    place = places(noise, images, size, step=0)
    first = window(place, size, images)
    second = window(places(noise, images, size, step=1), size, images)
    sign = signs(noise, Purpose.PERTURBATION, images[:, :, :1, :1], step=2)
    lying = signs(noise, Purpose.PERTURBATION, images[:, :1, :1, :1], step=3) > 0
    pattern = eta(size, images)
    stamp = torch.where(lying, stamped(pattern, place, images), stamped(pattern.T, place, images))
    delta = x - images
    unused = (epsilon**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
    budget = (delta * (first | second)).square().sum((2, 3), keepdim=True)
    new = unit(first * (sign * stamp + unit(delta * first)))
    new = new * (budget + unused / images.shape[1]).sqrt()
    delta = torch.where(first, new, delta * ~second)
    return project(images + epsilon * direction(delta), images, epsilon, "l2")


def eta(size: int, like: Tensor) -> Tensor:
    """(size, size) of L2 norm 1: two bumps, one above the other, of opposite signs."""
    upper = size // 2
    pattern = torch.cat([bump(upper, size, like), -bump(size - upper, size, like)])
    return unit(pattern)


def bump(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width) of L2 norm 1: sum_{k=d}^{n} 1 / (k + 1)^2 at the distance d from the centre,
    by the larger coordinate; n is the largest such distance."""
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    farthest = max(height // 2, width // 2)
    terms = torch.arange(farthest + 1, 0, -1, dtype=like.dtype, device=like.device) ** -2.0
    sums = terms.cumsum(0).flip(0)
    return unit(sums[torch.maximum(rows[:, None], columns)])


def places(noise: BatchNoise, images: Tensor, size: int, *, step: int) -> Tensor:
    """(B, 2) int64 top left corners of squares, uniform among those inside the image."""
    height, width = images.shape[2:]
    like = images.new_empty(len(images), 2, dtype=torch.float64)
    count = like.new_tensor([height - size + 1, width - size + 1])
    return (noise.uniform(Purpose.PERTURBATION, like, step=step) * count).long()


def window(place: Tensor, size: int, images: Tensor) -> Tensor:
    """(B, 1, H, W) bool: inside the squares at `place` (B, 2)."""
    return stamped(torch.ones(size, size, dtype=torch.bool, device=place.device), place, images)


def stamped(pattern: Tensor, place: Tensor, images: Tensor) -> Tensor:
    """(B, 1, H, W) with the pattern (size, size) at `place` (B, 2), zero outside."""
    bordered = F.pad(pattern, (1, 1, 1, 1))
    rows, columns = (
        (1 + torch.arange(side, device=place.device) - start[:, None]).clamp(0, len(pattern) + 1)
        for side, start in zip(images.shape[2:], place.T, strict=True)
    )
    return bordered[rows[:, :, None], columns[:, None, :]][:, None]


def signs(noise: BatchNoise, purpose: Purpose, like: Tensor, *, step: int = 0) -> Tensor:
    """-1 or 1, in the shape and dtype of `like`."""
    return torch.where(noise.uniform(purpose, like, step=step) < 0.5, -1.0, 1.0).to(like.dtype)


def unit(patterns: Tensor) -> Tensor:
    """Each (..., H, W) at L2 norm 1; zero stays zero."""
    length: Tensor = torch.linalg.vector_norm(patterns, dim=(-2, -1), keepdim=True)
    return patterns / length.clamp(min=TINY)


def _enlarged(grid: Tensor, size: int) -> Tensor:
    """Each value of (..., H, W) as a square of pixels."""
    return grid.repeat_interleave(size, -2).repeat_interleave(size, -1)
