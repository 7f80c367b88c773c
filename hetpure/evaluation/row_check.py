"""The gradient checks of a row: how far they go, what they may cost, and what they find."""

import time
from functools import partial
from typing import Any

from torch import Tensor

from hetpure.acceleration import unaccelerated
from hetpure.attacks import Attack
from hetpure.attacks.losses import criterion
from hetpure.defense import Defense
from hetpure.evaluation.audit import Check
from hetpure.evaluation.cost import cell_cost, gradient_seconds
from hetpure.evaluation.defense_check import (
    check_defense_gradient,
    float64_footprint,
    policies,
)
from hetpure.evaluation.description import Run
from hetpure.evaluation.extent import IMAGES, Extent, extents, thinned
from hetpure.evaluation.protocol import Block, Cell, Protocol
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.expectation import Query, expected_gradient
from hetpure.gradients import GradientError
from hetpure.memory import trim_heap
from hetpure.noise import Noise, Stream

# A gradient check may cost as much as so many steps of the main attack on one block, or a minute.
ATTACK_STEPS, MINUTE = 5, 60.0


def checked_defenses(row: Row) -> dict[str, Defense]:
    """What is checked of a row, by the names that results give the checks."""
    checked = {"gradient_check": row.defense}
    if row.surrogate is not None:
        checked["surrogate_gradient_check"] = row.surrogate
    return checked


def fitting_extents(attacked: Defense, images: Tensor, budget: int) -> dict[Extent, int]:
    """From the widest to the least, how far a check can go in `budget` bytes on a block like
    `images` (B, C, H, W), and the bytes that float64 takes for it. The least is always there."""
    plain = unaccelerated(attacked)
    footprint = float64_footprint(plain, images[:IMAGES])
    memory = {}
    for extent in extents(plain.plan, len(images)):
        steps = len(extent.plan)
        compared = policies(thinned(plain, extent.plan), extent.images, footprint, budget)
        taped = steps - min(execution.recomputed(steps) for execution in compared)
        memory[extent] = footprint.need(extent.images, steps, taped)
    least = list(memory)[-1]
    return {e: need for e, need in memory.items() if need <= budget or e == least}


def allowance(row: Row, attacked: Stopwatch, attack: Attack) -> float:
    """Seconds that a row's gradient checks may take: those of five steps of the attack on a block
    like the stopwatch's, or a minute, whichever is longer."""
    cost = cell_cost(row, Cell(attack.name, attack), Protocol())
    step = len(attacked.images) * cost.attack.draws * gradient_seconds(attacked, cost)
    return max(MINUTE, ATTACK_STEPS * step)


def check_gradients(run: Run, row: Row) -> dict[str, dict[str, Any]]:
    """The gradient checks of a row on the run's first block, by the names that results give them.
    Each looks at the least first, which tells how long a wider look takes, and then as far as the
    time allows."""
    checks, of_row = {}, checked_defenses(row)
    config, block, budget = run.config, run.read(0), run.check_budget
    clock = Stopwatch(row.attacked, block.images, repeats=1)
    seconds = allowance(row, clock, config.attack) / len(of_row)
    attacks = [cell.attack for cell in row.cells + row.audit]
    for name, defense in of_row.items():
        check = partial(
            check_defense_gradient,
            defense,
            block.images,
            block.samples,
            config.seed,
            bound=config.gradient_bound,
            evaluated=row.defense if defense is row.surrogate else None,
            attacks=attacks if defense is row.attacked else [],
            budget=budget,
            cosine_bound=config.cosine_bound,
        )
        candidates = list(fitting_extents(defense, block.images, budget))
        least = candidates[-1]
        start = time.perf_counter()
        narrow = check(extent=least)
        rate = (time.perf_counter() - start) / least.work
        widest = next((e for e in candidates if rate * e.work <= seconds), least)
        checks[name] = (narrow if widest == least else check(extent=widest)).as_dict()
        trim_heap()
    return checks


def first_gradients(row: Row, block: Block, seed: int, attack: Attack) -> Check:
    """Whether every image of a block that is answered rightly has a gradient, under one draw: that
    of the attack's own loss, as the attack takes it."""
    attacked = row.attacked
    mask = attacked.mask(block.images, block.samples)
    query = Query(block.images, block.samples, mask, [Noise.of(seed, Stream.PROBE)])
    losses = criterion(getattr(attack, "loss", "cross_entropy"), block.labels)
    how = attack.execution(attacked)
    try:
        expected_gradient(attacked, query, losses, execution=how, labels=block.labels)
    except GradientError as error:
        return Check("gradient", "FAIL", str(error))
    return Check("gradient", "PASS", f"finite and not zero, n = {len(block.images)}")
