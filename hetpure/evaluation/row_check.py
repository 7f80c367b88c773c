"""The gradient checks of a row: how far they go, what they cost, and what they find."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from hetpure.attacks import Attack
from hetpure.attacks.losses import criterion
from hetpure.defense import Defense
from hetpure.evaluation.audit import Check
from hetpure.evaluation.cost import (
    CheckPlan,
    Phase,
    cell_cost,
    gradient_seconds,
    purification_seconds,
)
from hetpure.evaluation.defense_check import (
    REFERENCE,
    Subject,
    check_defense_gradient,
    float64_footprint,
    plain_execution,
    policies,
)
from hetpure.evaluation.extent import IMAGES, Extent, extents, said, thinned, widest
from hetpure.evaluation.protocol import Block, Cell, Protocol
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import REPEATS, Stopwatch
from hetpure.expectation import Query, expected_gradient
from hetpure.gradient_check import float64_device, in_float64
from hetpure.gradients import Execution, GradientError
from hetpure.memory import Footprint, trim_heap
from hetpure.noise import Noise, Stream

# A gradient check may cost as much as so many steps of the main attack on one block, or a minute.
ATTACK_STEPS, MINUTE = 5, 60.0
TRIES = 2  # step sizes of a finite difference, on average: at the first one a kink may be crossed


def subjects(row: Row) -> dict[str, Subject]:
    """What is checked of a row, by the names that results give the checks."""
    plain, plain_surrogate = row.plain
    checked = {"gradient_check": _subject(row, row.defense, plain)}
    if row.surrogate is not None and plain_surrogate is not None:
        subject = _subject(row, row.surrogate, plain_surrogate)
        checked["surrogate_gradient_check"] = replace(subject, defense=plain)
    return checked


def _subject(row: Row, defense: Defense, plain: Defense) -> Subject:
    attacks = row.attacks if defense is row.attacked else []
    return Subject(defense, None if plain is defense else plain, attacks=attacks)


def plan_checks(
    row: Row, images: Tensor, attack: Attack, budget: int, repeats: int = REPEATS
) -> dict[str, CheckPlan]:
    """How far a row's gradient checks go on a block like `images` (B, C, H, W), in `budget` bytes
    and the time that the main attack allows; timed here with so many repeats."""
    of_row, plans = subjects(row), {}
    clocks = {
        name: Stopwatch(subject.attacked, images, repeats) for name, subject in of_row.items()
    }
    *_, attacked = clocks.values()
    seconds = allowance(row, attacked, attack) / len(clocks)
    for name, clock in clocks.items():
        plans[name] = plan_check(of_row[name], clock, budget, seconds)
        trim_heap()
    return plans


def plan_check(subject: Subject, attacked: Stopwatch, budget: int, seconds: float) -> CheckPlan:
    """The widest gradient check that fits into `budget` bytes and so many seconds. The stopwatch is
    of what the subject's attack differentiates, with a block of the run's images."""
    images, plain = attacked.images[:IMAGES], subject.unaccelerated
    footprint = float64_footprint(plain, images)
    point = images.to(float64_device(images.device)).double()
    double = Stopwatch(in_float64(plain), point, attacked.repeats)
    plans: dict[Extent, CheckPlan] = {}

    def fits(extent: Extent) -> bool:
        short = thinned(plain, extent.plan)
        compared = policies(short, extent.images, footprint, budget)
        memory = _memory(compared, extent, footprint)
        phase = check_phase(subject, attacked, double, extent, compared)
        plans[extent] = CheckPlan(extent, phase, memory)
        return memory <= budget and phase.seconds <= seconds

    return plans[widest(extents(subject.attacked.plan, len(attacked.images)), fits)]


def allowance(row: Row, attacked: Stopwatch, attack: Attack) -> float:
    """Seconds that a row's gradient checks may take: with the first gradients, those of five steps
    of the attack on a block like the stopwatch's, or a minute, whichever is longer."""
    cost = cell_cost(row, Cell(attack.name, attack), Protocol())
    five = ATTACK_STEPS * len(attacked.images) * cost.draws * gradient_seconds(attacked, cost)
    return max(MINUTE, five) - gradients_phase(row, attacked, attack).seconds


def gradients_phase(row: Row, attacked: Stopwatch, attack: Attack) -> Phase:
    """The look at whether every image of a block has a gradient, on one draw."""
    count = len(attacked.images)
    cost = cell_cost(row, Cell(attack.name, attack), Protocol())
    forward, differentiated = cost.calls_of_gradient
    seconds = count * gradient_seconds(attacked, cost)
    return Phase("first gradients", count * forward, count * differentiated, seconds)


def check_phase(
    subject: Subject,
    attacked: Stopwatch,
    double: Stopwatch,
    extent: Extent,
    compared: Sequence[Execution],
) -> Phase:
    """A gradient check as far as `extent` goes. In float64, by the stopwatch `double`: the policies
    `compared`, finite differences, and mostly the exact gradient of the attack's draws. On the
    run's device: the attack's gradient, and what attacks follow in its place."""
    used, plain, count = subject.attacked, subject.unaccelerated, extent.images
    short = thinned(plain, extent.plan)
    calls = [0, 0]
    seconds = 0.0

    def spend(clock: Stopwatch, entries: int, defense: Defense, how: Execution | None) -> None:
        """So many gradients, one an image and draw."""
        nonlocal seconds
        forward, differentiated = defense.gradient_calls(how)
        calls[0] += entries * forward
        calls[1] += entries * differentiated
        most = count if clock is double else used.execution.micro_batch or entries
        size = min(entries, most)
        seconds += entries * purification_seconds(clock, size, forward, differentiated)

    for execution in compared:
        spend(double, count, short, execution)
    answers = 2 * TRIES * extent.directions * count
    calls[0] += answers * short.network_calls
    each = short.network_calls * double.step(count)[0] / count + double.classifier()[0]
    seconds += answers * each

    asked, exact, in_double = subject.compared(extent)
    draws = subject.draws(extent, asked)
    spend(attacked, draws * extent.block, asked, None)
    spend(double if in_double else attacked, draws * count, exact, REFERENCE)

    substitutes = subject.substitutes.values()
    entries = subject.draws(extent, used) * extent.block
    if asked is not used and (substitutes or plain is not used):
        spend(attacked, entries, used, None)
    for attack in substitutes:
        spend(attacked, entries, used, attack.execution(used))
    if plain is not used:
        spend(attacked, entries, plain, plain_execution(used.execution))
    words = said(count, extent.directions, len(extent.plan), len(used.plan))
    return Phase(words, calls[0], calls[1], seconds)


def _memory(compared: Sequence[Execution], extent: Extent, footprint: Footprint) -> int:
    """Bytes of the policy that takes most of them, in float64."""
    steps = len(extent.plan)
    taped = steps - min(execution.recomputed(steps) for execution in compared)
    return footprint.need(extent.images, steps, taped)


def check_gradients(
    row: Row,
    block: Block,
    attack: Attack,
    budget: int,
    seed: int,
    *,
    bound: float,
    cosine_bound: float,
) -> dict[str, dict[str, Any]]:
    """The gradient checks of a row on a block, by the names that results give them."""
    checks = {}
    for name, plan in plan_checks(row, block.images, attack, budget, repeats=1).items():
        check = check_defense_gradient(
            subjects(row)[name],
            block.images,
            block.samples,
            seed,
            bound=bound,
            cosine_bound=cosine_bound,
            extent=plan.extent,
            budget=budget,
        )
        checks[name] = check.as_dict()
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


def failure(check: Mapping[str, Any]) -> str | None:
    """What of a gradient check failed and what to do, in one line; None where it passed."""
    if check["passed"]:
        return None
    if not check["policies_equal"]:
        elsewhere = (
            ""
            if check.get("device", "cpu") == "cpu"
            else f", or an operation of it does not repeat its bits on {check['device']}: a CPU"
            " tells them apart"
        )
        return (
            f"the policies {', '.join(check['compared'])} disagree, so a step does something else"
            f" when it is called again (noise that is not by address?){elsewhere}"
        )
    bound, cosine = check["cosine_bound"], check["cosine_to_float32"]
    if cosine is not None and not cosine >= bound:
        return (
            f"the accelerated gradient's cosine to float32 is {cosine:.4f}, below {bound}: use"
            " another acceleration, or allow it with cosine_bound"
        )
    if not check["approximation"] and not check["cosine_to_exact"] >= bound:
        return (
            f"as the attack's gradient is computed on this device, its cosine to the exact one is"
            f" {check['cosine_to_exact']:.4f}, below {bound}: allow it with cosine_bound"
        )
    if not check["directions"]:
        return (
            "it could not be checked: every step of a finite difference crossed a kink of a"
            " network; another seed takes other directions"
        )
    return (
        f"its error against finite differences is {check['finite_difference_error']:.1e}, above"
        f" {check['bound']:.0e}, on {check['directions']} directions: a step may be detached, or"
        " raise gradient_bound if the network's kinks explain it"
    )
