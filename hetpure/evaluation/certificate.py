"""The gradient certificate of a whole defence, on the run's own images."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hetpure.attacks import Attack
from hetpure.attacks.gradient import GradientAttack
from hetpure.certificate import Certificate, certify, cosines
from hetpure.defense import Defense
from hetpure.expectation import Criterion, Query, expected_gradient
from hetpure.gradients import APPROXIMATIONS, Execution
from hetpure.memory import budget_bytes
from hetpure.noise import Noise, Purpose, RowNoise, Stream

IMAGES, DIRECTIONS, DRAWS = 2, 3, 2
REFERENCE = Execution("checkpoint")
# As small as the loss of a sure classifier makes them: a number format must hold these too.
SMALL = 1e-6


def certify_defense(
    attacked: Defense,
    images: Tensor,
    samples: Tensor,
    seed: int,
    *,
    bound: float,
    plain: Defense | None = None,
    defense: Defense | None = None,
    budget: int | None = None,
    cosine_bound: float = 0.99,
    attacks: Sequence[Attack] = (),
) -> Certificate:
    """Certifies the gradient of what an attack differentiates, on a block of images (B, C, H, W)
    in pixel [0, 1].

    `plain` is the same with the network not accelerated: exactness is shown on it. `defense` is
    what is evaluated where `attacked` is a surrogate of it: the exact gradient is the defence's.
    Of those `attacks` that follow something else its cosine is told.
    Policies that do not fit into `budget` bytes in float64 are left out, but never all.
    """
    plain = plain or attacked
    used, steps = attacked.execution, len(plain.plan)
    # An interior point, for finite differences.
    interior = 0.1 + 0.8 * images[:IMAGES].detach()
    compared = policies(plain, interior, budget or budget_bytes(torch.device("cpu")))
    certificate = _certify(plain, interior, samples[:IMAGES], seed, compared, bound)
    certificate = replace(
        certificate,
        policy=used.describe(steps),
        compared=tuple(execution.describe(steps) for execution in compared),
        approximation=used.policy in APPROXIMATIONS or defense is not None,
        cosine_bound=cosine_bound,
    )

    # The images themselves, asked for as an attack does.
    evaluated = defense or plain
    noises = [Noise.of(seed, Stream.PROBE, k) for k in range(draws(attacked, plain, len(images)))]
    query = Query(images.detach(), samples, evaluated.mask(images, samples), noises)
    ours = expected_gradient(attacked, query, _loss(query)).gradient
    exact = _exact_gradient(evaluated, query)
    cosine = float(cosines(ours[:IMAGES], exact).mean())
    told = {
        name: float(cosines(_substitute(attack, attacked, query), ours).mean())
        for name, attack in substitutes(attacks, attacked).items()
    }
    certificate = replace(certificate, cosine_to_exact=cosine, substitute_cosines=told)
    if plain is not attacked:
        how = plain_execution(used)
        float32 = expected_gradient(plain, query, _loss(query), execution=how).gradient
        cosine_of = cosines(ours, float32)
        certificate = replace(
            certificate,
            cosine_to_float32=float(cosine_of.mean()),
            lowest_cosine_to_float32=float(cosine_of.min()),
        )
    return certificate


def policies(defense: Defense, images: Tensor, budget: int) -> list[Execution]:
    """The exact policies to compare in float64: the one in use first, then the others that fit. At
    least two, where the plan has a step: one taped step takes no more than none."""
    steps, rows = len(defense.plan), len(images)
    footprint = defense.footprint(images).times(8 // images.element_size())
    fitting = max(footprint.fitting(rows, steps, budget) or 0, 1)
    used = defense.execution
    exact = [used] if used.resolved and used.policy not in APPROXIMATIONS else []
    half = Execution("hybrid", max(min(fitting, steps // 2), 1))
    found: dict[int, Execution] = {}
    for execution in (*exact, Execution("checkpoint"), half, Execution("tape")):
        recomputed = execution.recomputed(steps)
        if steps - recomputed <= fitting:
            found.setdefault(recomputed, execution)
    return list(found.values())


def substitutes(attacks: Sequence[Attack], attacked: Defense) -> dict[str, GradientAttack]:
    """One attack for each thing that is followed in the gradient's place, by its name."""
    found: dict[str, GradientAttack] = {}
    for attack in attacks:
        if isinstance(attack, GradientAttack) and (name := attack.substitute(attacked)):
            found.setdefault(name, attack)
    return found


def _substitute(attack: GradientAttack, attacked: Defense, query: Query) -> Tensor:
    asked = attack.query(attacked, query.images, query.samples, query.mask, query.noises)
    how = attack.execution(attacked)
    return expected_gradient(attacked, asked, _loss(query), execution=how).gradient


def draws(attacked: Defense, plain: Defense, images: int) -> int:
    """Noise draws that the attack's gradient is asked for: more than one, so that rows are more
    than images; as many as fill a micro-batch where code is compiled for its shape."""
    if attacked is plain:
        return DRAWS
    return max(DRAWS, -(-(attacked.execution.micro_batch or 1) // images))


def plain_execution(used: Execution) -> Execution:
    """How the plain network is differentiated beside an accelerated one: as that is, but with a
    memory that certainly suffices."""
    if used.policy in APPROXIMATIONS:
        return used
    return replace(REFERENCE, micro_batch=used.micro_batch)


def _certify(
    defense: Defense,
    images: Tensor,
    samples: Tensor,
    seed: int,
    compared: list[Execution],
    bound: float,
) -> Certificate:
    rows = Noise.of(seed, Stream.PROBE).on(samples.cpu())
    point = images.cpu().double()
    directions = torch.stack(
        [rows.normal(Purpose.START, point, step=k) for k in range(1, DIRECTIONS + 1)]
    )
    directions = directions / directions.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
    mask = defense.mask(images, samples)
    fixed = None if mask is None else mask.cpu().double()

    def loss(module: nn.Module, x: Tensor, execution: Execution) -> Tensor:
        logits: Tensor = module(x, rows, fixed, execution)
        return (_weights(logits, rows) * logits).sum()

    return certify(defense, loss, point, directions, compared, bound=bound)


def _weights(logits: Tensor, noise: RowNoise) -> Tensor:
    """A random weighting of logits (R, classes), fixed by the rows' samples: unlike a cross-entropy
    it stays well conditioned where the classifier is sure."""
    return noise.normal(Purpose.START, logits)


def _loss(query: Query) -> Criterion:
    """The weighted logits of each row."""
    of_images = query.noises[0].on(query.samples)

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        weights = _weights(logits.new_empty(len(query.images), logits.shape[1]), of_images)
        return SMALL * (weights[index] * logits).sum(1)

    return loss


def _exact_gradient(defense: Defense, query: Query) -> Tensor:
    """Of the first images, in float64 on the CPU, a row at a time: (IMAGES, C, H, W)."""
    double = copy.deepcopy(defense).cpu().double()
    mask = None if query.mask is None else query.mask[:IMAGES].cpu().double()
    images, samples = query.images[:IMAGES].cpu().double(), query.samples[:IMAGES].cpu()
    few = Query(images, samples, mask, query.noises)
    how = replace(REFERENCE, micro_batch=IMAGES)
    return expected_gradient(double, few, _loss(few), execution=how).gradient
