"""The gradient certificate of a whole defence, on the run's own images."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from hetpure.certificate import Certificate, certify, mean_cosine
from hetpure.defense import Defense
from hetpure.expectation import Query
from hetpure.gradients import APPROXIMATIONS, Execution, input_gradient
from hetpure.memory import budget_bytes
from hetpure.noise import Noise, Purpose, RowNoise, Stream

IMAGES, DIRECTIONS = 2, 3
EXACT_COSINE = Execution("checkpoint")


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
) -> Certificate:
    """Certifies the gradient of what an attack differentiates, on images (B, C, H, W) in pixel
    [0, 1].

    The scalar is a random weighting of the logits: unlike a cross-entropy it stays well
    conditioned where the classifier is sure. Images are moved into the interior of [0, 1] and
    masks are held fixed. Policies that do not fit into `budget` bytes in float64 are left out.

    `plain` is the same with the network not accelerated: exactness is shown on it, and the cosine
    between the two is judged. `defense` is what is evaluated where `attacked` is a surrogate of it.
    """
    plain = plain or attacked
    images = 0.1 + 0.8 * images.detach()
    used, steps = attacked.execution, len(plain.plan)
    compared = policies(plain, images[:IMAGES], budget or budget_bytes(torch.device("cpu")))
    certificate = _certify(plain, images[:IMAGES], samples[:IMAGES], seed, compared, bound)
    certificate = replace(
        certificate,
        policy=used.describe(steps),
        compared=tuple(execution.describe(steps) for execution in compared),
    )
    query = Query(
        images, samples, (defense or plain).mask(images, samples), _draws(attacked, images, seed)
    )
    if used.policy in APPROXIMATIONS or defense is not None:
        ours = _gradient(plain, query, used, used)
        exact = _gradient(defense or plain, query, EXACT_COSINE, used)
        certificate = replace(certificate, cosine_to_exact=mean_cosine(ours, exact))
    if plain is not attacked:
        ours, exact = (_gradient(which, query, used, used) for which in (attacked, plain))
        certificate = replace(
            certificate, cosine_to_float32=mean_cosine(ours, exact), cosine_bound=cosine_bound
        )
    return certificate


def policies(defense: Defense, images: Tensor, budget: int) -> list[Execution]:
    """The exact policies to compare in float64: the one in use first, then the others that fit."""
    steps, rows = len(defense.plan), len(images)
    footprint = defense.footprint(images).times(8 // images.element_size())
    fitting = footprint.fitting(rows, steps, budget) or 0
    used = defense.execution
    exact = [used] if used.resolved and used.policy not in APPROXIMATIONS else []
    half = Execution("hybrid", min(fitting, steps // 2))
    found: dict[int, Execution] = {}
    for execution in (*exact, Execution("checkpoint"), half, Execution("tape")):
        recomputed = execution.recomputed(steps)
        if steps - recomputed <= fitting:
            found.setdefault(recomputed, execution)
    return list(found.values())


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
        return _weighted(module(x, rows, fixed, execution), rows)

    return certify(defense, loss, point, directions, compared, bound=bound)


def _weighted(logits: Tensor, noise: RowNoise) -> Tensor:
    """A random weighting of the logits (R, classes), fixed by the rows' addresses."""
    return (noise.normal(Purpose.START, logits) * logits).sum()


def _draws(defense: Defense, images: Tensor, seed: int) -> list[Noise]:
    """As many as fill a micro-batch: compiled code is asked for no other shape."""
    size = defense.execution.micro_batch or len(images)
    return [Noise.of(seed, Stream.PROBE, k) for k in range(-(-size // len(images)))]


def _gradient(defense: Defense, query: Query, how: Execution, used: Execution) -> Tensor:
    """Of one micro-batch, (R, C, H, W)."""
    size = used.micro_batch or len(query.images)
    _, rows, noise, mask = next(query.pieces(size))
    point = rows.detach().requires_grad_()
    return input_gradient(_weighted(defense(point, noise, mask, how), noise), point)
