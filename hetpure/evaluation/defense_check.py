"""The gradient check of a whole defence, on the run's own images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hetpure.attacks import Attack
from hetpure.attacks.gradient import GradientAttack
from hetpure.defense import Defense
from hetpure.evaluation.extent import Extent, extents, thinned
from hetpure.expectation import Criterion, Query, expected_gradient
from hetpure.gradient_check import (
    GradientCheck,
    check_gradient,
    cosines,
    float64_device,
    in_float64,
)
from hetpure.gradients import APPROXIMATIONS, Execution
from hetpure.memory import Footprint, budget_bytes, weight_bytes
from hetpure.noise import BatchNoise, Noise, Purpose, Stream

DRAWS = 2
REFERENCE = Execution("checkpoint")
# As small as the loss of a sure classifier makes them: a number format must hold these too.
SMALL = 1e-6


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Args:
        attacked: what an attack differentiates.
        plain: the same with the network as it is, where that of `attacked` is accelerated:
            exactness is shown on it.
        defense: what is evaluated where `attacked` is a surrogate of it: the exact gradient is the
            defence's.
        attacks: the run's. Of those that follow something else its cosine is told.
    """

    attacked: Defense
    plain: Defense | None = None
    defense: Defense | None = None
    attacks: Sequence[Attack] = ()

    @property
    def unaccelerated(self) -> Defense:
        """What is attacked, with the network as it is."""
        return self.plain or self.attacked

    @property
    def evaluated(self) -> Defense:
        """Whose gradient is the exact one."""
        return self.defense or self.unaccelerated

    @property
    def approximation(self) -> bool:
        """Whether the attack's gradient is another one than the exact one."""
        return self.attacked.execution.policy in APPROXIMATIONS or self.defense is not None

    @property
    def substitutes(self) -> dict[str, GradientAttack]:
        """One attack for each thing that is followed in the gradient's place, by its name."""
        attacks: dict[str, GradientAttack] = {}
        for attack in self.attacks:
            if isinstance(attack, GradientAttack) and (name := attack.substitute(self.attacked)):
                attacks.setdefault(name, attack)
        return attacks

    def whole(self, extent: Extent) -> bool:
        """Whether no step is left out."""
        return extent.plan == self.attacked.plan

    def compared(self, extent: Extent) -> tuple[Defense, Defense, bool]:
        """The two defences between whose gradients the cosine to the exact one is, the attack's and
        the exact one, and whether the latter is in float64. An approximation of fewer steps would
        look better than it is: it is held to all steps, which only a whole extent has in float64.
        """
        if self.approximation:
            return self.attacked, self.evaluated, self.whole(extent)
        plan = extent.plan
        return thinned(self.attacked, plan), thinned(self.unaccelerated, plan), True

    def draws(self, extent: Extent, asked: Defense) -> int:
        """Noise draws that a gradient is asked for on the run's device: two, so that a batch is
        more than the images; one where `asked` takes all steps and they are dear. As many as fill a
        micro-batch where code is compiled for its shape."""
        dear = not self.whole(extent) and asked.plan == self.attacked.plan
        least = 1 if dear else DRAWS
        if self.unaccelerated is self.attacked:
            return least
        return max(least, -(-(self.attacked.execution.micro_batch or 1) // extent.block))


def check_defense_gradient(
    subject: Subject,
    images: Tensor,
    samples: Tensor,
    seed: int,
    *,
    bound: float,
    extent: Extent | None = None,
    budget: int | None = None,
    cosine_bound: float = 0.99,
) -> GradientCheck:
    """Checks a gradient on a block of images (B, C, H, W) in pixel [0, 1], as far as `extent`
    says: by default all of it. Policies that do not fit into `budget` bytes in float64 are left
    out, but never all."""
    attacked, plain = subject.attacked, subject.unaccelerated
    extent = extent or extents(attacked.plan, len(images))[0]
    if budget is None:
        budget = budget_bytes(float64_device(images.device))
    gradient_check = replace(
        _check_policies(plain, images, samples, seed, extent, budget, bound),
        policy=attacked.execution.describe(len(attacked.plan)),
        approximation=subject.approximation,
        cosine_bound=cosine_bound,
        steps=len(extent.plan),
        of_steps=len(attacked.plan),
    )

    # The images themselves, asked for as an attack does.
    block, of_block = images[: extent.block].detach(), samples[: extent.block]
    mask = subject.evaluated.mask(block, of_block)

    def query(asked: Defense) -> Query:
        draws = range(subject.draws(extent, asked))
        return Query(block, of_block, mask, [Noise.of(seed, Stream.PROBE, k) for k in draws])

    asked, reference, double = subject.compared(extent)
    near = query(asked)
    ours = expected_gradient(asked, near, _loss(near)).gradient
    exact = _exact_gradient(reference, near, extent.images, double)
    cosine = float(cosines(ours[: extent.images], exact).mean())
    gradient_check = replace(gradient_check, cosine_to_exact=cosine)

    substitutes = subject.substitutes
    if not substitutes and plain is attacked:
        return gradient_check
    # Between gradients of all steps: of fewer steps, these cosines would be nearer to 1.
    whole = query(attacked)
    if asked is not attacked:
        ours = expected_gradient(attacked, whole, _loss(whole)).gradient
    cosines_of = {
        name: float(cosines(_substitute(attack, attacked, whole), ours).mean())
        for name, attack in substitutes.items()
    }
    gradient_check = replace(gradient_check, substitute_cosines=cosines_of)
    if plain is not attacked:
        how = plain_execution(attacked.execution)
        float32 = expected_gradient(plain, whole, _loss(whole), execution=how).gradient
        cosine_of = cosines(ours, float32)
        gradient_check = replace(
            gradient_check,
            cosine_to_float32=float(cosine_of.mean()),
            lowest_cosine_to_float32=float(cosine_of.min()),
        )
    return gradient_check


def float64_footprint(defense: Defense, images: Tensor) -> Footprint:
    """Of a copy of the defence in float64, for such images (B, C, H, W)."""
    return defense.footprint(images).in_float64(images.element_size(), weight_bytes([defense]))


def policies(defense: Defense, count: int, footprint: Footprint, budget: int) -> list[Execution]:
    """The exact policies to compare: the one in use first, then the others that fit. At least two,
    where the plan has a step: one taped step takes no more than none."""
    steps, used = len(defense.plan), defense.execution
    fitting = max(footprint.fitting(count, steps, budget) or 0, 1)
    exact = [used] if used.resolved and used.policy not in APPROXIMATIONS else []
    half = Execution("hybrid", max(min(fitting, steps // 2), 1))
    chosen: dict[int, Execution] = {}
    for execution in (*exact, Execution("checkpoint"), half, Execution("tape")):
        recomputed = execution.recomputed(steps)
        if steps - recomputed <= fitting:
            chosen.setdefault(recomputed, execution)
    return list(chosen.values())


def plain_execution(used: Execution) -> Execution:
    """How the plain network is differentiated beside an accelerated one: as that is, but with a
    memory that certainly suffices."""
    if used.policy in APPROXIMATIONS:
        return used
    return replace(REFERENCE, micro_batch=used.micro_batch)


def _check_policies(
    defense: Defense,
    images: Tensor,
    samples: Tensor,
    seed: int,
    extent: Extent,
    budget: int,
    bound: float,
) -> GradientCheck:
    """Exact policies and finite differences, in float64 and at an interior point."""
    defense, count = thinned(defense, extent.plan), extent.images
    images, samples = 0.1 + 0.8 * images[:count].detach(), samples[:count]
    compared = policies(defense, count, float64_footprint(defense, images), budget)
    device = float64_device(images.device)
    noise = Noise.of(seed, Stream.PROBE).on(samples.to(device))
    point = images.to(device).double()
    directions = torch.stack(
        [noise.normal(Purpose.START, point, step=1 + k) for k in range(extent.directions)]
    )
    directions = directions / directions.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
    mask = defense.mask(images, samples)
    fixed = None if mask is None else mask.to(device).double()

    def loss(module: nn.Module, x: Tensor, execution: Execution) -> Tensor:
        logits: Tensor = module(x, noise, fixed, execution)
        return (_weights(logits, noise) * logits).sum()

    check = check_gradient(defense, loss, point, directions, compared, bound=bound)
    return replace(check, compared=tuple(how.describe(len(extent.plan)) for how in compared))


def _weights(logits: Tensor, noise: BatchNoise) -> Tensor:
    """A random weighting of logits (N, classes), fixed by the samples: unlike a cross-entropy
    it stays well conditioned where the classifier is sure."""
    return noise.normal(Purpose.START, logits)


def _loss(query: Query) -> Criterion:
    """The weighted logits of each image and draw."""
    of_images = query.noises[0].on(query.samples)

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        weights = _weights(logits.new_empty(len(query.images), logits.shape[1]), of_images)
        return SMALL * (weights[index] * logits).sum(1)

    return loss


def _substitute(attack: GradientAttack, attacked: Defense, query: Query) -> Tensor:
    asked = attack.query(attacked, query)
    how = attack.execution(attacked)
    return expected_gradient(attacked, asked, _loss(query), execution=how).gradient


def _exact_gradient(defense: Defense, query: Query, count: int, double: bool) -> Tensor:
    """Of the first `count` images, in float64 or in the run's precision: (count, C, H, W)."""
    how = replace(REFERENCE, micro_batch=defense.execution.micro_batch)
    mask = None if query.mask is None else query.mask[:count]
    images, samples = query.images[:count], query.samples[:count]
    if double:
        how = replace(REFERENCE, micro_batch=count)
        device = float64_device(images.device)
        defense = in_float64(defense)
        images, samples = images.to(device).double(), samples.to(device)
        mask = None if mask is None else mask.to(device).double()
    few = Query(images, samples, mask, query.noises)
    return expected_gradient(defense, few, _loss(few), execution=how).gradient
