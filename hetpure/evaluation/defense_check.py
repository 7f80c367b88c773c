"""The gradient check of a whole defence, on the run's own images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hetpure.acceleration import unaccelerated
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
FURTHER = 6  # directions, where those before crossed kinks whatever their step size
REFERENCE = Execution("checkpoint")
# As small as the loss of a sure classifier makes them: a number format must hold these too.
SMALL = 1e-6


def check_defense_gradient(
    attacked: Defense,
    images: Tensor,
    samples: Tensor,
    seed: int,
    *,
    bound: float,
    evaluated: Defense | None = None,
    attacks: Sequence[Attack] = (),
    extent: Extent | None = None,
    budget: int | None = None,
    cosine_bound: float = 0.99,
) -> GradientCheck:
    """Checks the gradient that attacks take of `attacked` on a block of images (B, C, H, W) in
    pixel [0, 1].

    Args:
        attacked: what an attack differentiates. Exactness is shown on its unaccelerated network.
        images: of a block.
        samples: their ids (B,).
        seed: of noise, directions and the weights of the loss.
        bound: largest relative error against finite differences.
        evaluated: the defence, where `attacked` is a surrogate of it: the exact gradient is the
            defence's.
        attacks: the run's. Of those that follow something else its cosine is told.
        extent: how far the check goes; by default all of it.
        budget: bytes. Policies that do not fit into it in float64 are left out, but never all.
        cosine_bound: smallest mean cosine.
    """
    plain = unaccelerated(attacked)
    exactly = plain if evaluated is None else unaccelerated(evaluated)
    approximation = evaluated is not None or attacked.execution.policy in APPROXIMATIONS
    extent = extent or extents(attacked.plan, len(images))[0]
    plan = extent.plan
    if budget is None:
        budget = budget_bytes(float64_device(images.device))
    gradient_check = replace(
        _check_policies(plain, images, samples, seed, extent, budget, bound),
        policy=attacked.execution.describe(len(attacked.plan)),
        approximation=approximation,
        cosine_bound=cosine_bound,
        steps=len(plan),
        of_steps=len(attacked.plan),
    )

    # The attack's cosine: the images themselves, asked for as an attack does.
    block, of_block = images[: extent.block].detach(), samples[: extent.block]
    mask = exactly.mask(block, of_block)

    def query(asked: Defense) -> Query:
        # Two draws, so that a batch is more than the images; one where all steps are dear.
        draws = DRAWS if asked.plan == plan else 1
        noises = [Noise.of(seed, Stream.PROBE, draw) for draw in range(draws)]
        return Query(block, of_block, mask, noises)

    if approximation:  # of fewer steps it would look better than it is: it is held to all of them
        asked, reference, double = attacked, exactly, plan == attacked.plan
    else:
        asked, reference, double = thinned(attacked, plan), thinned(plain, plan), True
    near = query(asked)
    ours = expected_gradient(asked, near, _loss(near)).gradient
    exact = _exact_gradient(reference, near, extent.images, double)
    cosine = float(cosines(ours[: extent.images], exact).mean())
    gradient_check = replace(gradient_check, cosine_to_exact=cosine)

    # Substitutes and float32, beside gradients of all steps: of fewer, they would be nearer to 1.
    substitutes: dict[str, GradientAttack] = {}
    for attack in attacks:
        if isinstance(attack, GradientAttack) and (name := attack.substitute(attacked)):
            substitutes.setdefault(name, attack)
    if not substitutes and plain is attacked:
        return gradient_check
    whole = query(attacked)
    loss = _loss(whole)
    if asked is not attacked:
        ours = expected_gradient(attacked, whole, loss).gradient
    substitute_cosines = {}
    for name, attack in substitutes.items():
        how = attack.execution(attacked)
        asked_for = attack.query(attacked, whole)
        followed = expected_gradient(attack.followed(attacked), asked_for, loss, execution=how)
        substitute_cosines[name] = float(cosines(followed.gradient, ours).mean())
    gradient_check = replace(gradient_check, substitute_cosines=substitute_cosines)
    if plain is not attacked:
        how = attacked.execution
        if how.policy not in APPROXIMATIONS:  # a memory that certainly suffices
            how = replace(REFERENCE, micro_batch=how.micro_batch)
        cosine_of = cosines(ours, expected_gradient(plain, whole, loss, execution=how).gradient)
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
    device = float64_device(images.device)
    point = _interior_point(images[:count].detach().to(device))
    images, samples = point.to(images.dtype).to(images.device), samples[:count]
    compared = policies(defense, count, float64_footprint(defense, images), budget)
    noise = Noise.of(seed, Stream.PROBE).on(samples.to(device))
    mask = defense.mask(images, samples)
    fixed = None if mask is None else mask.to(device).double()

    def direction(number: int) -> Tensor:
        along = noise.normal(Purpose.START, point, step=1 + number)
        unit: Tensor = along / torch.linalg.vector_norm(along)
        return unit

    def loss(module: nn.Module, x: Tensor, execution: Execution) -> Tensor:
        logits: Tensor = module(x, noise, fixed, execution)
        return (_weights(logits, noise) * logits).sum()

    check = check_gradient(
        defense,
        loss,
        point,
        map(direction, range(extent.directions + FURTHER)),
        compared,
        bound=bound,
        wanted=extent.directions,
    )
    return replace(check, compared=tuple(how.describe(len(extent.plan)) for how in compared))


def _interior_point(images: Tensor) -> Tensor:
    """A point inside [0, 1] near 0.1 + 0.8 images (B, C, H, W), in float64. In turn its pixels lie
    on one of 256 levels and halfway between two. A defence that cuts off or rounds to 8 bits jumps
    there, where finite differences see it; a continuous one does not mind."""
    levels = (255 * (0.1 + 0.8 * images.double())).round()
    halves = 0.5 * (torch.arange(levels[0].numel(), device=levels.device) % 2)
    return (levels + halves.reshape(levels.shape[1:])) / 255


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
